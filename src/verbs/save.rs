//! `lighter save` and `lighter template`: writes a guest's memory and state to a file, and its
//! disks beside it.

mod disks;

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use vmm_core::snapshot::PartialFile;

use self::disks::Copies;
use super::session::{END_PATIENCE, block_on, is_gone_within};
use crate::api::saving::{SaveFormat, SaveId, SaveRequest, Saved};
use crate::api::types::{GuestState, StateAnswer};
use crate::api::{ApiClient, AskError};
use crate::cli::guest::{SaveArgs, TemplateArgs};
use crate::ended::{How, SAVED_TO};
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::signals::EndSignals;
use crate::state_dir::{GuestDir, ProcessHandle, StateDir};
use crate::units::{format_duration, format_size};

/// How long a save may take: memory is written to a disk.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Saves a guest.
///
/// # Errors
/// If there is no such guest, it is being migrated, it would continue and writes disks that are not
/// copied, or a file cannot be written.
pub(crate) fn run(state: &StateDir, args: &SaveArgs) -> Result<Exit> {
    let asked = SaveJob::new(state, &args.name, &args.file)?;
    let goes_on = args.keep_running;
    block_on(asked.or_interrupted(async {
        match (args.disks, goes_on) {
            (false, true) => asked.write(SaveFormat::Guest).await,
            (with_disks, goes_on) => asked.write_standing(with_disks, goes_on).await,
        }
    }))
}

/// Makes a template from a guest.
///
/// # Errors
/// Like [`run`].
pub(crate) fn template(state: &StateDir, args: &TemplateArgs) -> Result<Exit> {
    let asked = SaveJob::new(state, &args.name, &args.file)?;
    block_on(asked.write(SaveFormat::Template))
}

/// A guest that is to be written to a file.
#[derive(Debug)]
struct SaveJob {
    state: StateDir,
    name: GuestName,
    guest: GuestDir,
    client: ApiClient,
    file: PathBuf,
    /// The save for which the guest is paused, once it is and until it is told to end.
    standing: Cell<Option<SaveId>>,
    /// Files of that save that are complete and have their names.
    files: RefCell<Vec<PathBuf>>,
}

impl SaveJob {
    fn new(state: &StateDir, name: &GuestName, file: &Path) -> Result<Self> {
        let guest = state.live_guest(name)?;
        let client = ApiClient::new(&guest.socket()).with_patience(PATIENCE);
        let file =
            std::path::absolute(file).with_context(|| format!("cannot find {}", file.display()))?;
        let (standing, files) = (Cell::default(), RefCell::default());
        let (state, name) = (state.clone(), name.clone());
        Ok(Self { state, name, guest, client, file, standing, files })
    }

    /// Runs `work`, unless a signal interrupts it: then the guest is resumed.
    async fn or_interrupted(&self, work: impl Future<Output = Result<Exit>>) -> Result<Exit> {
        let mut signals = EndSignals::listen()?;
        let signal = tokio::select! {
            done = work => return done.with_context(|| format!("cannot save {}", self.name)),
            signal = signals.next() => signal,
        };
        // While the file is still being written, the guest's process resumes the guest on its own,
        // since no client waits for its answer any more.
        let error = anyhow!("interrupted by {signal}");
        let error = match self.standing.get() {
            Some(save) => self.undo(save, error).await,
            None => error.context(self.left()),
        };
        Err(error).with_context(|| format!("cannot save {}", self.name))
    }

    /// Resumes the guest, which cannot be saved because of `error`, and then removes the files of
    /// the save: they are out of date, and another save may need their names. Returns the error
    /// with what becomes of the guest and the files.
    async fn undo(&self, save: SaveId, error: Error) -> Error {
        match self.ask_guest("release", save).await {
            Ok(StateAnswer { state }) => {
                // Otherwise it is about to end, and the files may be all that is left of it.
                if matches!(state, GuestState::Running | GuestState::Paused) {
                    self.files.borrow_mut().retain(|file| fs::remove_file(file).is_err());
                }
                error.context(format!("{} is {}; {}", self.name, state.as_str(), self.left()))
            }
            Err(silence) => silence.context(format!("{error:#}")).context(self.left()),
        }
    }

    /// Says which files the save leaves.
    fn left(&self) -> String {
        let files = self.files.borrow();
        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        match files.join(", ") {
            none if none.is_empty() => "no file is left".to_owned(),
            files => format!("left, and perhaps out of date: {files}"),
        }
    }

    async fn ask_guest(&self, what: &str, save: SaveId) -> Result<StateAnswer> {
        Ok(self.client.put_json(&format!("/v1/guest/save/{what}"), &save).await?)
    }

    /// Creates an unnamed file, which gets its name when it is complete. It is opened here, since
    /// the guest's process may not open it and the file should belong to this user.
    fn open(&self) -> Result<PartialFile> {
        PartialFile::create(&self.file)
            .with_context(|| format!("cannot save the guest to {}", self.file.display()))
    }

    fn publish(&self, file: PartialFile) -> Result<()> {
        file.publish(|| Ok(()))
            .with_context(|| format!("cannot save the guest to {}", self.file.display()))?;
        self.files.borrow_mut().push(self.file.clone());
        Ok(())
    }

    async fn fill(&self, file: &PartialFile, request: &SaveRequest) -> Result<Saved> {
        let file = file.file().try_clone().context("cannot pass the file on")?;
        Ok(self.client.post_with_files("/v1/guest/save", request, vec![file]).await?)
    }

    /// Writes a guest that continues once its memory is written.
    async fn write(&self, format: SaveFormat) -> Result<Exit> {
        let partial = self.open()?;
        let file = self.file.clone();
        let request = SaveRequest { file, format, keep_running: true, copies: None };
        let saved = self.fill(&partial, &request).await?;
        self.publish(partial)?;
        self.print(&saved, Some(saved.paused_ms))
    }

    /// Writes a guest that stays paused until the file has its name and its disks are copied.
    async fn write_standing(&self, with_disks: bool, goes_on: bool) -> Result<Exit> {
        let copies = match with_disks {
            true => Copies::create(&self.client.get("/v1/guest").await?, &self.file)?,
            false => Copies::default(),
        };
        let partial = self.open()?;
        let (file, format) = (self.file.clone(), SaveFormat::Guest);
        let request = SaveRequest { file, format, keep_running: false, copies: copies.plan() };
        let began = std::time::Instant::now();
        let saved = self.fill(&partial, &request).await?;
        let save = SaveId { id: saved.id };
        self.standing.set(Some(save));
        let published = async {
            copies.fill(|| self.ask_guest("hold", save)).await?;
            copies.publish(|copy| self.files.borrow_mut().push(copy.to_owned()))?;
            self.publish(partial)
        };
        if let Err(error) = published.await {
            return Err(self.undo(save, error).await);
        }
        if goes_on {
            self.ask_guest("release", save).await.with_context(|| self.left())?;
            let stood = u64::try_from(began.elapsed().as_millis()).ok();
            return self.print(&saved, stood);
        }
        self.end(save).await?;
        self.print(&saved, None)
    }

    /// Ends a guest whose file is complete.
    async fn end(&self, save: SaveId) -> Result<()> {
        let process = ProcessHandle::of(&self.guest).ok();
        // From now on, an interruption neither resumes the guest nor removes its file.
        self.standing.set(None);
        let answer = match self.ask_guest("finish", save).await {
            Err(error) if matches!(error.downcast_ref(), Some(AskError::Refused(_))) => {
                return Err(self.undo(save, error).await);
            }
            answer => answer,
        };
        if is_gone_within(&self.guest, process.as_ref(), END_PATIENCE).await {
            return match answer {
                // It may have been killed before: then the node may start the guest again, and what
                // is in the file is out of date.
                Err(error) if !self.is_recorded() => Err(error.context(self.left())),
                _ => Ok(()),
            };
        }
        answer.with_context(|| self.left())?;
        bail!("the guest's process does not end; {}", self.left())
    }

    /// Whether the guest's record says that it ended with this save.
    fn is_recorded(&self) -> bool {
        let reason = format!("{SAVED_TO}{}", self.file.display());
        let ended = self.state.ended().read(&self.name);
        ended.is_some_and(|ended| ended.how == How::Saved && ended.reason == reason)
    }

    /// Prints the result for a guest that was paused for some time, or has ended.
    fn print(&self, saved: &Saved, stood_ms: Option<u64>) -> Result<Exit> {
        let (name, size, file) = (&self.name, format_size(saved.file_bytes), self.file.display());
        let became = match stood_ms {
            Some(ms) => format!("was paused for {}", format_duration(Duration::from_millis(ms))),
            None => "has ended".to_owned(),
        };
        output::print_line(format_args!("{name}: {size} in {file}, the guest {became}"))?;
        Ok(Exit::Done)
    }
}
