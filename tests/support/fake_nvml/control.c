/* What the control file says. */
#include "fake_nvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLANKS " \t\r\n"
#define MAX_LINE 1024

static const char *const key_names[NUM_KEYS] = {
#define X(name, value) #name,
    KEYS(X)
#undef X
};

static const double key_defaults[NUM_KEYS] = {
#define X(name, value) value,
    KEYS(X)
#undef X
};

void fake_begin_anew(struct state *state)
{
    state->num_gpus = 8;
    state->num_events = 0;
    for (int i = 0; i < MAX_GPUS; i++) {
        struct gpu *gpu = &state->gpus[i];
        memset(gpu, 0, sizeof *gpu);
        memcpy(gpu->value, key_defaults, sizeof key_defaults);
        gpu->limit_mw = MAX_LIMIT_MW;
    }
}

struct told {
    double value[MAX_GPUS][NUM_KEYS];
    double now_s; /* below 0: not told */
    int num_gpus, num_events;
    int64_t boot;
    struct event events[MAX_EVENTS];
};

static void set_keys(struct told *told, const char *which, char **rest)
{
    int first = *which == '*' ? 0 : atoi(which);
    int last = *which == '*' ? MAX_GPUS - 1 : first;
    char *word;
    if (first < 0 || last >= MAX_GPUS)
        return;
    while ((word = strtok_r(NULL, BLANKS, rest)) && *word != '#') {
        char *equals = strchr(word, '=');
        if (!equals)
            continue;
        *equals = 0;
        for (int key = 0; key < NUM_KEYS; key++)
            if (strcmp(word, key_names[key]) == 0)
                for (int i = first; i <= last; i++)
                    told->value[i][key] = atof(equals + 1);
    }
}

static void add_event(struct told *told, int is_xid, char **rest)
{
    char *gpu = strtok_r(NULL, BLANKS, rest);
    char *type = is_xid ? "8" : strtok_r(NULL, BLANKS, rest);
    char *data = strtok_r(NULL, BLANKS, rest);
    if (!gpu || !type || !data || told->num_events == MAX_EVENTS)
        return;
    told->events[told->num_events++] =
        (struct event){atoi(gpu), strtoull(type, NULL, 0), strtoull(data, NULL, 0)};
}

static void take_line(struct told *told, char *line)
{
    char *rest, *word = strtok_r(line, BLANKS, &rest);
    if (!word || *word == '#')
        return;
    if (strcmp(word, "xid") == 0 || strcmp(word, "event") == 0)
        add_event(told, *word == 'x', &rest);
    else if (*word == '*' || (*word >= '0' && *word <= '9'))
        set_keys(told, word, &rest);
    else {
        char *number = strtok_r(NULL, BLANKS, &rest);
        if (!number)
            return;
        if (strcmp(word, "boot") == 0)
            told->boot = atoll(number);
        else if (strcmp(word, "gpus") == 0)
            told->num_gpus = atoi(number);
        else if (strcmp(word, "now") == 0)
            told->now_s = atof(number);
    }
}

void fake_read_control(struct state *state, const char *path, double clock_s)
{
    static struct told told; /* large; under the lock */
    char line[MAX_LINE];
    FILE *file = fopen(path, "r");
    int is_virtual, is_first;
    double now_s;
    if (!file)
        return;
    memset(&told, 0, sizeof told);
    told.now_s = -1;
    told.num_gpus = 8;
    for (int i = 0; i < MAX_GPUS; i++)
        memcpy(told.value[i], key_defaults, sizeof key_defaults);
    while (fgets(line, sizeof line, file))
        take_line(&told, line);
    fclose(file);

    is_virtual = told.now_s >= 0;
    now_s = is_virtual ? told.now_s : clock_s;
    is_first = state->control_ns == 0;
    if (told.boot != state->boot || is_first)
        fake_begin_anew(state);
    if (told.boot != state->boot || is_first || is_virtual != state->is_virtual)
        state->now_s = now_s;
    else
        fake_pass_time(state, now_s); /* at the old power */
    for (int i = 0; i < MAX_GPUS; i++) {
        struct gpu *gpu = &state->gpus[i];
        if (told.value[i][K_reset] != gpu->value[K_reset]) {
            gpu->energy_mj = gpu->shown_mj = 0;
            gpu->limit_mw = MAX_LIMIT_MW;
            gpu->locked_mhz = 0;
        }
        memcpy(gpu->value, told.value[i], sizeof gpu->value);
    }
    state->boot = told.boot;
    state->is_virtual = is_virtual;
    if (told.num_gpus >= 0 && told.num_gpus <= MAX_GPUS)
        state->num_gpus = told.num_gpus;
    state->num_events = told.num_events;
    memcpy(state->events, told.events, sizeof told.events);
}
