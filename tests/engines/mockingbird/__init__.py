"""MockingBird: by a double everywhere, by a checkout where ACCELERATOR_MOCKINGBIRD_ROOT names one."""
