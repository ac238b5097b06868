#!/bin/bash
# Becomes PID 1 of a throw-away machine: systemd over an overlay of a root tree.
# Runs in fresh pid, mount, ipc, uts, net and cgroup namespaces, which machine.py makes.
# The program below /opt is the checkout under test with the interpreter that runs the tests:
# a service cannot see a home directory or a private /tmp, wherever those lie here.
#   init.sh WORK TREE CHECKOUT BASE_PREFIX SITE_PACKAGES MODELS
set -euo pipefail
work=$1 tree=$2 checkout=$3 base=$4 site=$5 models=$6
python=python$("$base/bin/python3" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

mount --make-rprivate /
mount -t tmpfs -o size=1g tmpfs "$work"
mkdir "$work/upper" "$work/scratch" "$work/root" "$work/site-upper" "$work/site-scratch"
root=$work/root
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/scratch" "$root"

venv=$root/opt/nodeserve
mkdir -p "$root/opt/python" "$venv/bin" "$venv/lib/$python/site-packages" "$root/srv/models"
mount --bind "$base" "$root/opt/python"
mount -t overlay overlay "$venv/lib/$python/site-packages" \
    -o "lowerdir=$site,upperdir=$work/site-upper,workdir=$work/site-scratch"
mkdir -p "$venv/lib/$python/site-packages/nodeserve"
mount --bind "$checkout/nodeserve" "$venv/lib/$python/site-packages/nodeserve"
mount --bind "$models" "$root/srv/models"
ln -s "/opt/python/bin/$python" "$venv/bin/python3"
printf 'home = /opt/python/bin\ninclude-system-site-packages = false\n' >"$venv/pyvenv.cfg"
printf '#!/opt/nodeserve/bin/python3\nfrom nodeserve.cli.main import main\nmain()\n' >"$venv/bin/nodeserve"
chmod 755 "$venv/bin/nodeserve"
# A way to hang the supervisor's loop from outside: only here, never in the product.
cat >"$venv/lib/$python/site-packages/sitecustomize.py" <<'EOF'
import signal, time
def block_the_loop(number, frame):
    time.sleep(3600)
signal.signal(signal.SIGUSR2, block_the_loop)
EOF
echo /opt/python/lib >"$root/etc/ld.so.conf.d/opt-python.conf"
ldconfig -r "$root"

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in dev run tmp; do mount -t tmpfs -o mode=0755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/run/systemd/system"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
: >"$root/etc/machine-id"
echo throw-away >"$root/etc/hostname"
rm -rf "$root/etc/systemd/system/nodeserve"* "$root/etc/nodeserve"
ln -s /dev/null "$root/etc/systemd/system/timers.target" # no updates while tests run
ip link set lo up || :
printf '%s\n' '[Unit]' 'Requires=basic.target dbus.service' 'After=basic.target dbus.service' \
    'AllowIsolate=yes' >"$root/run/systemd/system/tests.target"

cd "$root"
mkdir .old
pivot_root . .old
umount -l /.old
mount --make-rshared / # LoadCredential= needs propagation
exec env -i container=nodeserve-tests PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
    /lib/systemd/systemd --system --unit=tests.target --log-target=journal --log-level=info \
    --show-status=no
