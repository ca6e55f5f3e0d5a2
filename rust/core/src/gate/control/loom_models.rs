//! Models of the races of the state that gates share, for the model checker: `make loom`.
