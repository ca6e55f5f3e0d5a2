//! The Python binding: converts, calls, maps errors. Decides nothing.
