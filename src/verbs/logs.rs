//! `lighter logs`: a guest's console output that is kept, or the log of its process.
//!
//! The console of a guest in the background is a log in its folder, which is rotated. Of a guest
//! that writes to stdout, the process keeps the last output, and its API returns it. The end of the
//! console's output is kept with the record of the guest's end; if its process died, both logs.

mod file;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::sleep;

use self::file::{Log, LogPaths, Rotation, last_lines};
use super::console_output;
use super::follow::interrupts;
use super::session::{block_on, guest_client, how_it_ended};
use crate::api::ApiClient;
use crate::api::types::ConsoleRead;
use crate::cli::watch::LogsArgs;
use crate::ended::{Ended, How, KEPT_LOGS};
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output::{self, GuestOutput};
use crate::state_dir::{GuestDir, StateDir};

/// Pause between two checks whether a log has grown.
const PAUSE: Duration = Duration::from_millis(100);

/// Prints a guest's log; with `--follow` until the guest is gone, or the user interrupts.
///
/// # Errors
/// If there is no such guest, it has no such log, or this user may not read it.
pub(crate) fn run(state: &StateDir, args: &LogsArgs) -> Result<Exit> {
    let which = if args.process { Which::Process } else { Which::Console };
    let mut source = Source::find(state, &args.name, which)?;
    if !args.follow {
        block_on(source.print(args.tail, &mut GuestOutput::new()))?;
        return Ok(Exit::Done);
    }
    let guest = state.guest(&args.name);
    let is_gone = block_on(async {
        let mut interrupts = interrupts()?;
        tokio::select! {
            is_gone = follow(state, source, args.tail, &guest) => is_gone,
            _ = interrupts.recv() => Ok(false),
        }
    })?;
    if is_gone {
        // If its process was killed, this records it.
        guest.settle();
        output::note(how_it_ended(state, &args.name));
    }
    Ok(Exit::Done)
}

/// One of a guest's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    /// The output of its serial console.
    Console,
    /// The log of its process.
    Process,
}

impl Which {
    /// Returns the files of the log in `folder`: a live guest's, or the one where logs are kept.
    fn within(self, folder: &Path) -> LogPaths {
        let [console, process, old_console] = KEPT_LOGS.map(|name| folder.join(name));
        match self {
            Self::Console => LogPaths { current: console, old: Some(old_console) },
            Self::Process => LogPaths { current: process, old: None },
        }
    }

    /// Returns why there is no such log of a guest that has ended.
    fn missing(self, ended: &Ended) -> String {
        let Ended { name, how, reason, .. } = ended;
        let ago = ended.ago();
        match (how, self) {
            (How::Died, Self::Console) => {
                format!(
                    "{name} {reason} ({ago}), and left no console output; `lighter logs --process {name}` may say more"
                )
            }
            (_, Self::Console) => format!("{name} {reason} ({ago}), and left no console output"),
            (How::Died, Self::Process) => {
                format!("{name} {reason} ({ago}), and its process left no log")
            }
            (_, Self::Process) => format!(
                "{name} {reason} ({ago}): logs of processes are kept only if the process died"
            ),
        }
    }
}

/// Where a log is read.
#[derive(Debug)]
enum Source {
    /// Its files.
    Files(Log),
    /// The API of a guest whose console is stdout.
    Scrollback {
        client: ApiClient,
        /// Offset to continue from.
        next: u64,
    },
}

impl Source {
    /// Finds the log of the live guest `name`, or of the last one.
    fn find(state: &StateDir, name: &GuestName, which: Which) -> Result<Self> {
        let open = |folder: &Path| {
            let log = Log::open(which.within(folder));
            log.with_context(|| format!("cannot print the logs of {name}"))
        };
        let guest = state.guest(name);
        if guest.is_live() {
            return match (open(guest.path())?, which) {
                (Some(log), _) => Ok(Self::Files(log)),
                (None, Which::Console) => {
                    Ok(Self::Scrollback { client: guest_client(state, name)?, next: 0 })
                }
                (None, Which::Process) => bail!(
                    "{name} has no log of its own: its process logs on the stderr of its `lighter run`, or in the log of the node that \
                     received it"
                ),
            };
        }
        // If its process was killed, this keeps its logs.
        guest.settle();
        if let Some(log) = open(&state.ended().place(name))? {
            return Ok(Self::Files(log));
        }
        match state.ended().read(name) {
            Some(ended) => Err(anyhow!(which.missing(&ended))),
            None => {
                state.live_guest(name)?;
                bail!("{name} has just started: try again")
            }
        }
    }

    /// Prints what there is, or its last `tail` lines. Returns false if the reader of stdout has
    /// closed its end.
    async fn print(&mut self, tail: Option<u64>, out: &mut GuestOutput) -> Result<bool> {
        match self {
            Self::Files(log) => {
                if let Some(lines) = tail {
                    log.skip_to_last(lines)?;
                }
                log.read(|bytes| out.write(bytes))
            }
            Self::Scrollback { client, next } => {
                let read = client.read_console(&ConsoleRead::default()).await;
                let excerpt = read.context("cannot read the console")?;
                *next = excerpt.next();
                out.write(last_lines(&excerpt.bytes, tail))
            }
        }
    }
}

/// Prints a log and what is added to it. Returns true when the guest is gone, or false when the
/// reader of stdout has closed its end.
async fn follow(
    state: &StateDir,
    mut source: Source,
    tail: Option<u64>,
    guest: &GuestDir,
) -> Result<bool> {
    let mut out = GuestOutput::new();
    if !source.print(tail, &mut out).await? {
        return Ok(false);
    }
    match source {
        Source::Files(log) => follow_files(log, guest, &mut out).await,
        Source::Scrollback { client, next } => {
            let note_lost = |bytes| {
                output::note(format_args!("lighter: {bytes} bytes were written too fast for this"));
            };
            let write = |bytes: &[u8]| out.write(bytes);
            console_output::follow(state, (guest, &client), Some(next), write, note_lost).await
        }
    }
}

async fn follow_files(mut log: Log, guest: &GuestDir, out: &mut GuestOutput) -> Result<bool> {
    let mut first = None;
    loop {
        // Before the log is read: what was written until then is printed.
        let process = guest.read_identity().ok().map(|it| (it.pid, it.started_unix_ms));
        let is_here = guest.is_live() && is_same(&mut first, process);
        if !log.read(|bytes| out.write(bytes))? {
            return Ok(false);
        }
        if !is_here {
            return Ok(true);
        }
        if log.find_rotation()? == Rotation::Uncertain {
            output::note("lighter: output may be missing here: the log was rotated more than once");
        }
        sleep(PAUSE).await;
    }
}

/// Whether `now` is the process that was seen first: the name may belong to another guest by now.
/// True as long as one of them is unknown.
fn is_same(first: &mut Option<(u32, u64)>, now: Option<(u32, u64)>) -> bool {
    now.is_none_or(|now| *first.get_or_insert(now) == now)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::clock::unix_ms;
    use crate::file_lock::FileLock;

    fn name() -> GuestName {
        "web".parse().unwrap()
    }

    fn ended(how: How) -> Ended {
        Ended {
            name: name(),
            uuid: uuid::Uuid::nil(),
            began_unix_ms: 1,
            ended_unix_ms: unix_ms(),
            how,
            reason: "went".to_owned(),
            console_bytes: 0,
        }
    }

    fn error(state: &StateDir, which: Which) -> String {
        format!("{:#}", Source::find(state, &name(), which).unwrap_err())
    }

    #[test]
    fn a_live_guest_has_its_files_or_its_scrollback() {
        let (_folder, state) = StateDir::temporary();
        let guest = state.guest(&name());
        fs::create_dir_all(guest.path()).unwrap();
        let _lock = FileLock::try_acquire(&guest.path().join("lock")).unwrap().unwrap();
        let find = |which| Source::find(&state, &name(), which);
        assert!(matches!(find(Which::Console).unwrap(), Source::Scrollback { next: 0, .. }));
        assert!(error(&state, Which::Process).contains("no log of its own"));
        for file in [guest.console_log(), guest.process_log()] {
            fs::write(file, "").unwrap();
        }
        for which in [Which::Console, Which::Process] {
            assert!(matches!(find(which).unwrap(), Source::Files(_)));
        }
    }

    #[test]
    fn of_guests_that_are_gone_the_logs_or_the_reason_for_their_absence_are_found() {
        let (_folder, state) = StateDir::temporary();
        assert!(error(&state, Which::Console).contains("no guest web"));
        state.ended().create_place(&name()).unwrap();
        for (how, which, expected) in [
            (How::PoweredOff, Which::Console, "no console output"),
            (How::PoweredOff, Which::Process, "are kept only"),
            (How::Died, Which::Console, "no console output"),
            (How::Died, Which::Process, "left no log"),
        ] {
            state.ended().write(&ended(how)).unwrap();
            let error = error(&state, which);
            assert!(error.contains("web went") && error.contains(expected), "{error}");
        }
        fs::write(state.ended().place(&name()).join("console.log.old"), "x").unwrap();
        let found = Source::find(&state, &name(), Which::Console).unwrap();
        assert!(matches!(found, Source::Files(_)));
    }

    #[test]
    fn another_process_under_the_same_name_is_noticed_once_both_are_known() {
        let mut first = None;
        assert!(is_same(&mut first, None));
        assert!(is_same(&mut first, Some((7, 1))));
        assert!(is_same(&mut first, None));
        assert!(is_same(&mut first, Some((7, 1))));
        assert!(!is_same(&mut first, Some((7, 2))));
        assert!(!is_same(&mut first, Some((8, 1))));
    }
}
