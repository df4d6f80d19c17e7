//! The fault matrix: kill, cut, corrupt and cancel in each phase of a migration, and the resolution
//! of every doubt.
//!
//! A failpoint (`migrate/src/failpoint.rs`) holds a phase, see [`phase`]; what then happens to the
//! migration is real: a SIGKILL, a closed connection, a second command. [`scene`] sets it up. Each
//! test is a cell of the matrix, and named after it.

/// Defines one test per phase, each of which calls `super::$check` with its phase.
macro_rules! in_each_phase {
    ($check:ident: $($phase:ident)*) => {
        mod $check {
            use crate::faults::phase;
            $(
                #[test]
                fn $phase() {
                    super::$check(&phase::$phase());
                }
            )*
        }
    };
}

/// Defines a test per failpoint, each of which calls `super::$check` with its point.
macro_rules! at {
    ($check:ident: $($name:ident $point:literal)*) => {
        mod $check {
            $(
                #[test]
                fn $name() {
                    super::$check($point);
                }
            )*
        }
    };
}

mod arrivals;
mod breakdowns;
mod cancels;
mod clocks;
mod cuts;
mod doubts;
mod flips;
mod hand_over;
mod kills;
mod nodes;
mod phase;
mod postcopy;
mod resets;
mod returns;
mod scene;
mod standstill;
mod stops;
mod throttled;
mod versions;
mod withheld;
