//! Verification of logs, from nothing but their files. Shares no code with what writes them.
