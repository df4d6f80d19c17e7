//! `lighter cancel`: cancels a running migration, on either host.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use migrate::progress::Role;
use migrate::report::Outcome;
use migrate::{MigrationId, Reason, Report};

use super::follow::Follower;
use super::session::{block_on, guest_client, state_of};
use super::summary::stays;
use crate::api::types::{GuestInfo, GuestState, StateAnswer};
use crate::api::{ApiClient, AskError};
use crate::cli::migration::CancelArgs;
use crate::exit::{Exit, ExitWith};
use crate::output;
use crate::state_dir::StateDir;

/// How long cancellation may take: the other host is told, and may be slow to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Cancels the migration of a guest, and waits until it is over: until the guest is out of the
/// migration again, or the destination has nothing left of it.
///
/// # Errors
/// If there is no such guest or no migration, or the guest has been handed over.
pub(crate) fn run(state: &StateDir, args: &CancelArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let name = &args.name;
    let (report, here) = block_on(async {
        let before = call_off(&client)
            .await
            .with_context(|| format!("cannot cancel the migration of {name}"))?;
        let is_arriving = before.state == GuestState::Incoming;
        let follower = Follower {
            state: state.clone(),
            name: name.clone(),
            id: MigrationId(before.migration_id.unwrap_or_default()),
            role: if is_arriving { Role::Destination } else { Role::Source },
        };
        match tokio::time::timeout(PATIENCE, follower.report()).await {
            Ok(report) => Ok((report?, state_of(&client).await)),
            Err(_) => bail!(
                "{name} has received the request to cancel, but has not done so within {PATIENCE:?}"
            ),
        }
    })?;
    output::print_line(result(&report, here)?)?;
    Ok(Exit::Done)
}

/// Requests cancellation; returns the guest's state from before that.
async fn call_off(client: &ApiClient) -> Result<GuestInfo, AskError> {
    let before = client.get("/v1/guest").await?;
    client.delete::<StateAnswer>("/v1/guest/migration").await?;
    Ok(before)
}

/// Returns the result of a migration whose cancellation was accepted. `here` is the guest's state
/// on this host, if that is known.
fn result(report: &Report, here: Option<GuestState>) -> Result<String> {
    let name = &report.guest;
    let cause = report.error.as_ref().map_or("no reason was given", |error| error.message.as_str());
    let is_cancelled = report.error.as_ref().is_some_and(|error| error.reason == Reason::Cancelled);
    let what = if is_cancelled {
        "migration cancelled".to_owned()
    } else {
        format!("the migration failed before it was cancelled: {cause}")
    };
    let way_out = report.way_out.as_ref().map(|text| format!("\n{text}")).unwrap_or_default();
    match (report.outcome, report.role) {
        (Outcome::StayedAtSource, Role::Source) => {
            Ok(format!("{name}: {what}; {}", stays(report, here)))
        }
        (Outcome::StayedAtSource, Role::Destination) => Ok(format!(
            "{name}: {what}; the guest stays where it was, and nothing of it is left here"
        )),
        (Outcome::Migrated, Role::Source) => Err(anyhow!(
            "{name} has left this host: the migration was completed before it was cancelled"
        )),
        (Outcome::Migrated, Role::Destination) => {
            Err(anyhow!("{name} is here: the migration was completed before it was cancelled"))
        }
        (Outcome::InDoubt, _) => {
            let message = format!("the migration of {name} is in doubt: {cause}{way_out}");
            Err(ExitWith { exit: Exit::InDoubt, message }.into())
        }
        (Outcome::Lost, _) => Err(anyhow!("{name} is gone: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::report;
    use super::*;
    use crate::exit;

    #[test]
    fn the_result_is_that_of_the_report() {
        let said = |outcome, role, reason| {
            let report = Report { role, ..report(outcome, Some(reason)) };
            result(&report, Some(GuestState::Running))
        };
        let stayed = Outcome::StayedAtSource;
        let here = said(stayed, Role::Source, Reason::Cancelled).unwrap();
        assert_eq!(here, "web: migration cancelled; the guest keeps running here");
        let there = said(stayed, Role::Destination, Reason::Cancelled).unwrap();
        assert!(
            there.contains("cancelled") && there.contains("nothing of it is left here"),
            "{there}"
        );
        let failed = said(stayed, Role::Source, Reason::ConnectionLost).unwrap();
        assert!(failed.contains("cable cut") && failed.contains("keeps running here"), "{failed}");

        let moved = said(Outcome::Migrated, Role::Source, Reason::Other).unwrap_err();
        assert!(moved.to_string().contains("has left this host"), "{moved}");
        let lost = said(Outcome::Lost, Role::Source, Reason::GuestStopped).unwrap_err();
        assert!(lost.to_string().contains("web is gone: cable cut"), "{lost}");
        let doubt = said(Outcome::InDoubt, Role::Source, Reason::ConnectionLost).unwrap_err();
        assert_eq!(exit::of_error(&doubt), Exit::InDoubt);
    }
}
