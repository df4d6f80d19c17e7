//! What the benches share: guests of several systems, their consoles, and measurements of their
//! cost.

pub mod check_line;
pub mod console;
pub mod interruption;
pub mod lighter_console;
pub mod program;
pub mod usage;
