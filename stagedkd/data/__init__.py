"""From files and simulators to labelled clips on the device."""
