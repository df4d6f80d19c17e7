//! ksmd's settings: restored after each turn, however it ends, and out of reach of tests meanwhile.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use support::bench::interruption;

/// Name of the lock file, in the folder for temporary files, by which the tests that drive ksmd
/// take turns. Those tests also record the settings and would restore a temporary value.
const TURN: &str = "lighter-tests-ksm.lock";
const POLL_INTERVAL: Duration = Duration::from_millis(100);

const FOLDER: &str = "/sys/kernel/mm/ksm";

/// The settings that are changed here; older kernels lack some of them. They are restored from the
/// last to the first: ksmd stops before anything else changes, and the batch can only be set while
/// there is no advisor.
const ALL: [&str; 6] =
    ["smart_scan", "use_zero_pages", "sleep_millisecs", "pages_to_scan", "advisor_mode", "run"];
/// The advisor's setting (Linux 6.8).
const ADVISOR: &str = "advisor_mode";
const ADVISED: &str = "scan-time";

/// ksmd's original settings, which are restored when this is dropped.
pub(crate) struct Knobs {
    before: Vec<(&'static str, String)>,
    // Released once the settings are restored.
    _turn: File,
}

impl Knobs {
    /// Waits for tests that drive ksmd to end, and records the settings.
    ///
    /// # Errors
    /// If this kernel does not merge pages, ksmd is running, or the user interrupts.
    pub(crate) fn take() -> Result<Self> {
        let turn = take_turn()?;
        let known = ALL.into_iter().filter(|knob| Path::new(FOLDER).join(knob).exists());
        let before = known.map(|knob| Ok((knob, read(knob)?))).collect::<Result<Vec<_>>>()?;
        ensure!(before.contains(&("run", "0".to_owned())), "ksmd is at work for somebody else");
        Ok(Self { before, _turn: turn })
    }

    /// Has ksmd scan batches of `pages`, with `sleep_ms` between two.
    ///
    /// # Errors
    /// If the settings cannot be written, which requires root.
    pub(crate) fn run(&self, pages: u64, sleep_ms: u64) -> Result<()> {
        write("sleep_millisecs", &sleep_ms.to_string())?;
        write("pages_to_scan", &pages.to_string())?;
        write("run", "1")
    }

    /// Checks that ksmd still has the settings of [`Self::run`].
    ///
    /// # Errors
    /// If another process has changed them.
    pub(crate) fn expect(&self, pages: u64, sleep_ms: u64) -> Result<()> {
        let wanted = ["1".to_owned(), pages.to_string(), sleep_ms.to_string()];
        let found = [read("run")?, read("pages_to_scan")?, read("sleep_millisecs")?];
        ensure!(found == wanted, "somebody else drives ksmd: {found:?} instead of {wanted:?}");
        Ok(())
    }

    /// Has ksmd scan with `sleep_ms` between two batches, whose size the kernel's advisor sets.
    ///
    /// # Errors
    /// If the settings cannot be written, which requires root and a kernel with an advisor.
    pub(crate) fn run_advised(&self, sleep_ms: u64) -> Result<()> {
        write("sleep_millisecs", &sleep_ms.to_string())?;
        write(ADVISOR, ADVISED)?;
        write("run", "1")
    }

    /// Checks that ksmd still has the settings of [`Self::run_advised`].
    ///
    /// # Errors
    /// If another process has changed them.
    pub(crate) fn expect_advised(&self, sleep_ms: u64) -> Result<()> {
        let wanted = ["1".to_owned(), ADVISED.to_owned(), sleep_ms.to_string()];
        let found = [read("run")?, read(ADVISOR)?, read("sleep_millisecs")?];
        ensure!(found == wanted, "another process drives ksmd: {found:?} instead of {wanted:?}");
        Ok(())
    }

    /// Stops ksmd; merged pages stay merged.
    ///
    /// # Errors
    /// If the setting cannot be written, which requires root.
    pub(crate) fn stop(&self) -> Result<()> {
        write("run", "0")
    }

    /// Unmerges everything and discards ksmd's state, whose counters include processes that are
    /// gone.
    ///
    /// # Errors
    /// If the settings cannot be written, which requires root.
    pub(crate) fn forget(&self) -> Result<()> {
        write("run", "2")?;
        self.put_back()
    }

    /// Restores the original settings.
    ///
    /// # Errors
    /// If a setting cannot be restored; the others are restored nevertheless, and the last such
    /// error is returned.
    pub(crate) fn put_back(&self) -> Result<()> {
        let mut outcome = Ok(());
        for (knob, value) in self.before.iter().rev() {
            // Some settings do not accept even their present value: only those that differ are
            // written.
            if !read(knob).is_ok_and(|now| now == *value)
                && let Err(error) = write(knob, value)
            {
                outcome = Err(error);
            }
        }
        outcome
    }
}

impl Drop for Knobs {
    fn drop(&mut self) {
        if let Err(error) = self.put_back() {
            eprintln!("ksmd is not set as before: {error:#}");
        }
    }
}

/// Whether this kernel has an advisor for ksmd.
pub(crate) fn has_advisor() -> bool {
    Path::new(FOLDER).join(ADVISOR).exists()
}

fn take_turn() -> Result<File> {
    let path = std::env::temp_dir().join(TURN);
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    loop {
        interruption::check()?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(POLL_INTERVAL),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

/// The value of a setting; for a list of choices, the active one.
fn read(knob: &str) -> Result<String> {
    let path = format!("{FOLDER}/{knob}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Ok(chosen.map_or(text.trim(), |(chosen, _)| chosen).to_owned())
}

fn write(knob: &str, value: &str) -> Result<()> {
    let path = format!("{FOLDER}/{knob}");
    fs::write(&path, value).with_context(|| format!("cannot write {path}: it takes root"))
}
