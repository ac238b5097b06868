"""Pure core of device health: what a signal means and what is to be done about it."""
