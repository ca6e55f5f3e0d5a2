//! Models of the races of the budget room, for the model checker.
