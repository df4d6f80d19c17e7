//! When the memory of a host is optimised by itself: schedules, and what decides by them.
//!
//! [`read`] makes [`Schedule`]s of the `[[schedule]]` tables of `lighter.toml`; [`Scheduler`] is
//! told what time it is and says what is due, what was missed and what has to end. It holds no
//! clock, no timer and no file: whoever drives it does (ADR 18).
//!
//! It depends on [`crate::settings`], [`crate::units`] and [`crate::labels`] alone. Start reading
//! at [`Scheduler`].

mod cron;
mod entry;
mod file;
mod notice;
mod scheduler;
mod ticks;
mod zone;

pub use cron::{Cron, CronError};
pub use entry::{Budget, GoalText, Missing, Overlap, Schedule};
pub use file::{SCHEDULES_MAX, read};
pub use notice::{Due, Lost, Missed, Notice, Punctuality, Trigger};
pub use scheduler::{Event, Moment, NEXT_MAX, Scheduler, Tally, Upcoming};
pub use zone::{Zone, ZoneError};
