//! `lighter save` and `lighter template`: a guest's memory and state into a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm_core::snapshot::PartialFile;

use super::session::{block_on, is_gone_within};
use crate::api::ApiClient;
use crate::api::types::{SaveFormat, SaveRequest, Saved, StateAnswer};
use crate::cli::guest::{SaveArgs, TemplateArgs};
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{GuestDir, StateDir};
use crate::units::{format_duration, format_size};

/// Memory goes to a disk: that may take its time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How long a guest's process may take to end.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// Saves a guest.
///
/// # Errors
/// There is no such guest, it is being migrated, it shall go on and writes disks, or the file cannot be written.
pub(crate) fn run(state: &StateDir, args: &SaveArgs) -> Result<Exit> {
    let file = absolute(&args.file)?;
    let (format, keep_running) = (SaveFormat::Guest, args.keep_running);
    write(state, &args.name, &SaveRequest { file, format, keep_running })
}

/// Makes a template of a guest.
///
/// # Errors
/// As [`run`].
pub(crate) fn template(state: &StateDir, args: &TemplateArgs) -> Result<Exit> {
    let file = absolute(&args.file)?;
    let format = SaveFormat::Template;
    write(state, &args.name, &SaveRequest { file, format, keep_running: true })
}

fn absolute(file: &Path) -> Result<PathBuf> {
    std::path::absolute(file).with_context(|| format!("cannot find {}", file.display()))
}

fn write(state: &StateDir, name: &GuestName, request: &SaveRequest) -> Result<Exit> {
    let guest = state.live_guest(name)?;
    let client = ApiClient::new(&guest.socket()).with_patience(PATIENCE);
    let saved = block_on(save(&client, &guest, request));
    let saved = saved.with_context(|| format!("cannot save {name}"))?;
    let (size, file) = (format_size(saved.file_bytes), request.file.display());
    if request.keep_running {
        let stood = format_duration(Duration::from_millis(saved.paused_ms));
        output::print_line(format_args!(
            "{name}: {size} in {file}, the guest stood still for {stood}"
        ))?;
    } else {
        output::print_line(format_args!("{name}: {size} in {file}, the guest has ended"))?;
    }
    Ok(Exit::Done)
}

/// Has the guest written to a file without a name, which gets its name when all is there, and ended then unless it is to go on. The
/// file is opened here: the guest's process may not, and it becomes this user's.
async fn save(client: &ApiClient, guest: &GuestDir, request: &SaveRequest) -> Result<Saved> {
    let failed = || format!("cannot save the guest to {}", request.file.display());
    let partial = PartialFile::create(&request.file).with_context(failed)?;
    let saved = client.post_with_file("/v1/guest/save", request, partial.file()).await?;
    let published = partial.publish(|| Ok(())).with_context(failed);
    if request.keep_running {
        return published.map(|()| saved);
    }
    if let Err(error) = published {
        client
            .put::<StateAnswer>("/v1/guest/resume")
            .await
            .with_context(|| format!("{error:#}"))?;
        return Err(error);
    }
    end(client, guest).await.with_context(|| {
        format!("{} is complete, and may be of before by now", request.file.display())
    })?;
    Ok(saved)
}

/// Ends a guest whose file is complete.
async fn end(client: &ApiClient, guest: &GuestDir) -> Result<()> {
    let answer = client.put::<StateAnswer>("/v1/guest/save/finish").await;
    if is_gone_within(guest, END_PATIENCE).await {
        // Whatever it has answered.
        return Ok(());
    }
    answer?;
    bail!("the guest's process does not end")
}
