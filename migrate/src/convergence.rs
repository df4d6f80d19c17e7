//! When to stop sending rounds and pause the guest: one pure function.
