//! Drives ksmd in the way of other systems until it has used its allowance.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use memopt::ksm::{Budget, Control, Driver, End, Options, Outcome, Window};
use memopt::observe::{Sources, host_memory, ksmd_time};

use super::contender::Contender;
use super::fleet::Fleet;
use super::knobs::Knobs;
use super::laws::{self, Order, Rules, Seen, Tuner};
use support::bench::interruption;

/// Interval between two checks of whether ksmd has used its allowance.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// Interval at which lighter's node checks ksmd.
const NODE_TICK: Duration = Duration::from_secs(1);
/// Limit of a turn; the rest of the allowance is not used.
const PATIENCE: Duration = Duration::from_secs(900);
/// The kernel's default settings.
const DEFAULT_PAGES: u64 = 100;
const DEFAULT_SLEEP_MS: u64 = 20;

/// The CPU time that a contender may use, and at which pace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    /// CPU seconds that may be used.
    pub(crate) cpu_seconds: f64,
    /// ksmd's share of a core if it is driven as by lighter.
    pub(crate) cpu_share: f64,
    /// Pages per second that ksmd may scan in that case.
    pub(crate) pages_per_second: u64,
}

/// The CPU time that a contender has used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// CPU seconds of ksmd.
    pub(crate) ksmd: f64,
    /// CPU seconds of surveys of guests' pages, in the guests' processes.
    pub(crate) sampling: f64,
    /// CPU seconds of lighter's node.
    pub(crate) node: f64,
    /// Duration of the work.
    pub(crate) elapsed: Duration,
}

impl Spent {
    /// Total CPU seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.ksmd + self.sampling + self.node
    }
}

/// Measures the CPU time that ksmd uses.
struct Meter {
    sources: Sources,
    first: Duration,
    begun: Instant,
    allowed: Duration,
}

impl Meter {
    fn start(allowance: &Allowance) -> Result<Self> {
        let sources = Sources::system();
        let first = ksmd_time(&sources)?;
        let allowed = Duration::try_from_secs_f64(allowance.cpu_seconds)?;
        Ok(Self { sources, first, begun: Instant::now(), allowed })
    }

    fn used(&self) -> Result<Duration> {
        Ok(ksmd_time(&self.sources)?.saturating_sub(self.first))
    }

    /// Waits for `time`, or until the allowance is used up; returns whether some of it is left.
    fn wait(&self, time: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            interruption::check()?;
            if self.used()? >= self.allowed || self.begun.elapsed() >= PATIENCE {
                return Ok(false);
            }
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Ok(true);
            }
            thread::sleep(left.min(SAMPLE_INTERVAL));
        }
    }

    fn spent(&self) -> Result<Spent> {
        let ksmd = self.used()?.as_secs_f64();
        Ok(Spent { ksmd, elapsed: self.begun.elapsed(), ..Spent::default() })
    }
}

/// Lets `contender` use its allowance.
///
/// # Errors
/// If ksmd cannot be driven, or the user interrupts.
pub(crate) fn drive(
    contender: Contender,
    fleet: &Fleet,
    knobs: &Knobs,
    allowance: &Allowance,
    folder: &Path,
) -> Result<Spent> {
    let meter = Meter::start(allowance)?;
    match contender {
        Contender::Lighter => bail!("lighter drives ksmd itself"),
        Contender::Default => {
            knobs.run(DEFAULT_PAGES, DEFAULT_SLEEP_MS)?;
            meter.wait(PATIENCE)?;
            knobs.expect(DEFAULT_PAGES, DEFAULT_SLEEP_MS)?;
        }
        Contender::Advisor => {
            knobs.run_advised(DEFAULT_SLEEP_MS)?;
            meter.wait(PATIENCE)?;
            knobs.expect_advised(DEFAULT_SLEEP_MS)?;
        }
        Contender::Ksmtuned => by_law(laws::KSMTUNED, fleet, knobs, &meter)?,
        Contender::Mom => by_law(laws::MOM, fleet, knobs, &meter)?,
        Contender::Fast => as_lighter(allowance, &meter, folder)?,
    }
    let spent = meter.spent()?;
    knobs.stop()?;
    knobs.put_back()?;
    Ok(spent)
}

/// Pretends that the host's memory is what its guests were given: in that case these rules have
/// ksmd work hardest.
fn by_law(law: Rules, fleet: &Fleet, knobs: &Knobs, meter: &Meter) -> Result<()> {
    let host_gib = host_memory()?.total_bytes as f64 / f64::from(1 << 30);
    let sleep_ms = law.sleep_ms(host_gib);
    let host_bytes = fleet.figures()?.resident as f64;
    let mut tuner = Tuner::new(law);
    loop {
        let figures = fleet.figures()?;
        let seen = Seen {
            committed: figures.resident as f64 / host_bytes,
            free: 1.0 - figures.proportional as f64 / host_bytes,
        };
        let order = tuner.sample(seen);
        match order {
            Order::Stop => knobs.stop()?,
            Order::Run { pages } => knobs.run(pages, sleep_ms)?,
        }
        let has_more = meter.wait(law.interval)?;
        if let Order::Run { pages } = order {
            knobs.expect(pages, sleep_ms)?;
        }
        if !has_more {
            return Ok(());
        }
    }
}

/// Drives ksmd by the window that lighter's node would open. It may end before the allowance is
/// used up, when it gains nothing any more.
fn as_lighter(allowance: &Allowance, meter: &Meter, folder: &Path) -> Result<()> {
    let sources = Sources::system();
    let (control, _) = Control::open(&sources, &folder.join("ksm.json"))?;
    let Allowance { cpu_share, pages_per_second, .. } = *allowance;
    let window = Window::new(
        Budget { cpu_share, cpu_time: PATIENCE, pages_per_second, time: PATIENCE },
        Options::GUESTS,
    );
    let mut driver = Driver::new(&sources, control, window);
    loop {
        match driver.step(meter.begun.elapsed())? {
            Some(Outcome { end: End::Foreign(found), .. }) => {
                bail!("somebody else drives ksmd: {found:?}")
            }
            Some(_) => return Ok(()),
            None if meter.wait(NODE_TICK)? => {}
            None => {
                driver.call_off(meter.begun.elapsed()).context("ksmd cannot be stopped")?;
                return Ok(());
            }
        }
    }
}
