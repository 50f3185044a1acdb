"""One model by one protocol: samples on any number of processes, killed and gone on with."""
