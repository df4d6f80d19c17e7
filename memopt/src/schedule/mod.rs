//! When lighter optimises a host's memory automatically: schedules, and the scheduler.
//!
//! [`read`] parses [`Schedule`]s from the `[[schedule]]` tables of `lighter.toml`. [`Scheduler`] is
//! given the time and returns which runs are due, which were missed and which must end. It has no
//! clock, timer or file of its own; its caller does (ADR 18).
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
