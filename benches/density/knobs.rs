//! ksmd's settings: as before after each turn, however it ends, and nobody's tests meanwhile.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use support::bench::interruption;

/// By this, in the folder for temporary files, the tests that drive ksmd take turns. They also
/// remember how it is set, and would put back what somebody had set for the moment.
const TURN: &str = "lighter-tests-ksm.lock";
const POLL_INTERVAL: Duration = Duration::from_millis(100);

const FOLDER: &str = "/sys/kernel/mm/ksm";

/// What is changed here; older kernels do not have all of them. The last is put back first: ksmd
/// stops before anything else changes, and the batch can only be set without an advisor.
const ALL: [&str; 6] =
    ["smart_scan", "use_zero_pages", "sleep_millisecs", "pages_to_scan", "advisor_mode", "run"];
/// Linux 6.8.
const ADVISOR: &str = "advisor_mode";
const ADVISED: &str = "scan-time";

/// ksmd's settings as they were, and are again when this is dropped.
pub(crate) struct Knobs {
    before: Vec<(&'static str, String)>,
    // Let go when all is as before.
    _turn: File,
}

impl Knobs {
    /// Waits for the end of tests that drive ksmd, and remembers how it is set.
    ///
    /// # Errors
    /// This kernel does not merge pages, ksmd is at work, or the user calls it off.
    pub(crate) fn take() -> Result<Self> {
        let turn = take_turn()?;
        let known = ALL.into_iter().filter(|knob| Path::new(FOLDER).join(knob).exists());
        let before = known.map(|knob| Ok((knob, read(knob)?))).collect::<Result<Vec<_>>>()?;
        ensure!(before.contains(&("run", "0".to_owned())), "ksmd is at work for somebody else");
        Ok(Self { before, _turn: turn })
    }

    /// Has ksmd scan, `pages` in a batch with `sleep_ms` between two.
    ///
    /// # Errors
    /// It takes root.
    pub(crate) fn run(&self, pages: u64, sleep_ms: u64) -> Result<()> {
        write("sleep_millisecs", &sleep_ms.to_string())?;
        write("pages_to_scan", &pages.to_string())?;
        write("run", "1")
    }

    /// Whether ksmd is still set as [`Self::run`] did, and nobody else drives it.
    ///
    /// # Errors
    /// Somebody does.
    pub(crate) fn expect(&self, pages: u64, sleep_ms: u64) -> Result<()> {
        let wanted = ["1".to_owned(), pages.to_string(), sleep_ms.to_string()];
        let found = [read("run")?, read("pages_to_scan")?, read("sleep_millisecs")?];
        ensure!(found == wanted, "somebody else drives ksmd: {found:?} instead of {wanted:?}");
        Ok(())
    }

    /// Has ksmd scan with `sleep_ms` between two batches, whose size the kernel's advisor sets.
    ///
    /// # Errors
    /// It takes root, and a kernel that has an advisor.
    pub(crate) fn run_advised(&self, sleep_ms: u64) -> Result<()> {
        write("sleep_millisecs", &sleep_ms.to_string())?;
        write(ADVISOR, ADVISED)?;
        write("run", "1")
    }

    /// Whether ksmd is still set as [`Self::run_advised`] did.
    ///
    /// # Errors
    /// Somebody else drives it.
    pub(crate) fn expect_advised(&self, sleep_ms: u64) -> Result<()> {
        let wanted = ["1".to_owned(), ADVISED.to_owned(), sleep_ms.to_string()];
        let found = [read("run")?, read(ADVISOR)?, read("sleep_millisecs")?];
        ensure!(found == wanted, "another process drives ksmd: {found:?} instead of {wanted:?}");
        Ok(())
    }

    /// Stops ksmd; what is merged stays.
    ///
    /// # Errors
    /// It takes root.
    pub(crate) fn stop(&self) -> Result<()> {
        write("run", "0")
    }

    /// Has the kernel forget all that was ever merged: it counts what processes had that are gone.
    ///
    /// # Errors
    /// It takes root.
    pub(crate) fn forget(&self) -> Result<()> {
        write("run", "2")?;
        self.put_back()
    }

    /// Makes all as it was.
    ///
    /// # Errors
    /// The first that cannot be; the others are.
    pub(crate) fn put_back(&self) -> Result<()> {
        let mut outcome = Ok(());
        for (knob, value) in self.before.iter().rev() {
            // Some cannot even be written as they are: only what is another is.
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

/// The value; of a choice, what is chosen.
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
