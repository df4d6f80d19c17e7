//! `lighter demo`: a live migration, and back, between two temporary hosts.
//!
//! The hosts are two state folders on this machine, with certificates of a temporary authority.
//! Everything else is real: two `lighter node`, one `lighter run`, QUIC over loopback. [`stage`]
//! starts the hosts and removes them, [`guest_probe`] reads what the guest reports about itself,
//! [`printer`] prints the steps. Start at [`run`].

mod guest_probe;
mod printer;
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrate::progress::Role;
use migrate::{MigrationId, Report};
use serde::Serialize;

use guest_probe::{GuestProbe, Verdict};
use printer::Printer;
use stage::{Host, Stage};

use crate::api::migration::{MigrationRequest, MigrationStarted};
use crate::api::types::GuestState;
use crate::cli::Output;
use crate::cli::host::DemoArgs;
use crate::exit::{Exit, ExitWith};
use crate::output;
use crate::signals::EndSignals;
use crate::verbs::certs::identity_of;
use crate::verbs::follow::{Follower, interrupts};
use crate::verbs::progress::ProgressView;
use crate::verbs::session::block_on;
use crate::verbs::summary;

/// Longest downtime that is allowed, in milliseconds. The usual downtime is some tens of them, but
/// the demo should also succeed on a host that stalls for a second.
const DOWNTIME_MS_MAX: u64 = 3_000;

/// The demo's results, for `--json`.
#[derive(Debug, Serialize)]
struct Performance {
    /// Guest memory, bytes.
    memory_bytes: u64,
    /// Time that the guest took to fill and check its memory, seconds.
    fill_seconds: f64,
    /// The two migrations, there and back.
    legs: Vec<Leg>,
}

/// One of the demo's two migrations.
#[derive(Debug, Serialize)]
struct Leg {
    /// The host that the guest left.
    from: &'static str,
    /// The host that it went to.
    to: &'static str,
    /// The source's report of the migration.
    report: Report,
    /// What the guest reports about it.
    guest: Verdict,
}

/// Runs the demo.
///
/// # Errors
/// If anything goes wrong: a migration fails, the guest finds its memory damaged, or a process does
/// not start.
pub(crate) fn run(args: &DemoArgs) -> Result<Exit> {
    let mut stage = Stage::new()?;
    let played = block_on(async {
        let mut end = EndSignals::listen()?;
        let stopped = || ExitWith {
            exit: Exit::Cancelled,
            message: "stopped, and everything cleaned up".to_owned(),
        };
        tokio::select! {
            played = play(&mut stage, args) => played,
            _ = end.next() => Err(stopped().into()),
        }
    });
    let played = played.map_err(|error| stage.explain(error));
    stage.tear_down();
    let performance = played?;
    if args.json.output() == Output::Json {
        output::print_json(&performance)?;
    }
    match performance.legs.iter().find(|leg| !leg.guest.is_good()) {
        Some(leg) => {
            Err(ExitWith { exit: Exit::Corrupt, message: leg.guest.complaint(leg.to) }.into())
        }
        None => Ok(Exit::Done),
    }
}

async fn play(stage: &mut Stage, args: &DemoArgs) -> Result<Performance> {
    let printer = Printer::new(args.json.output());
    printer.opening()?;
    stage.raise().await?;
    printer.hosts(&stage.a, &stage.b)?;

    let began = Instant::now();
    stage.start_guest(args)?;
    printer.guest(args)?;
    let guest_probe = stage.a.meet_own_guest(began + fill_patience(args)).await?;
    let filled = guest_probe.wait_until_full(began + fill_patience(args)).await?;
    printer.filled(&filled, args.memory, began.elapsed())?;
    let fill_seconds = began.elapsed().as_secs_f64();

    let mut legs = Vec::new();
    for (from, to) in [(&stage.a, &stage.b), (&stage.b, &stage.a)] {
        printer.leg(from, to)?;
        let leg = move_guest(from, to, args).await?;
        printer.moved(&leg)?;
        let good = leg.guest.is_good();
        legs.push(leg);
        if !good {
            break;
        }
    }
    printer.end(legs.iter().all(|leg| leg.guest.is_good()))?;
    Ok(Performance { memory_bytes: args.memory, fill_seconds, legs })
}

/// Any machine fills and checks memory within a few seconds; one that swaps gets more time.
fn fill_patience(args: &DemoArgs) -> Duration {
    Duration::from_secs(60) + Duration::from_secs(args.memory >> 26)
}

async fn move_guest(from: &Host, to: &Host, args: &DemoArgs) -> Result<Leg> {
    let before = GuestProbe::meet(from, Instant::now() + Duration::from_secs(10)).await?;
    before.forget_stalls().await?;
    let identity = identity_of(from.state(), &stage::guest_name()?)?;
    let request = MigrationRequest {
        downtime_ms_max: DOWNTIME_MS_MAX,
        ..MigrationRequest::to(to.address().to_string(), identity)
    };
    let started: MigrationStarted = from
        .guest_client()
        .post("/v1/guest/migration", &request)
        .await
        .context("cannot start the migration")?;
    let follower = Follower {
        state: from.state().clone(),
        name: stage::guest_name()?,
        id: MigrationId(started.id),
        role: Role::Source,
    };
    let mut view = ProgressView::new(args.json.output());
    let report = follower.to_the_end(&mut interrupts()?, |progress| view.show(progress)).await;
    view.finish();
    let report = report?;
    if let Some(failure) = summary::failure(&report, to.name(), Some(GuestState::Running)) {
        return Err(failure.into());
    }
    let after = GuestProbe::meet(to, Instant::now() + Duration::from_secs(10)).await?;
    let guest = after.testify(Instant::now() + fill_patience(args)).await?;
    if !from.is_empty_soon().await {
        bail!("host {} still has the guest after it moved to host {}", from.name(), to.name());
    }
    Ok(Leg { from: from.name(), to: to.name(), report, guest })
}
