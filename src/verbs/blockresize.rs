//! `lighter blockresize`: grows a disk of a guest that runs or is paused.

use std::time::Duration;

use anyhow::{Context, Result};

use super::session::{block_on, guest_client, path_of};
use crate::api::types::{DiskInfo, DiskSizeRequest};
use crate::cli::Output;
use crate::cli::guest::BlockresizeArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::units::format_size;

/// How long it may take: all that the guest has written is made durable first.
const PATIENCE: Duration = Duration::from_secs(600);

/// Grows a disk of a guest, or tells the guest that its block device has grown.
///
/// # Errors
/// If there is no such guest or disk, or the disk cannot have that size.
pub(crate) fn run(state: &StateDir, args: &BlockresizeArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?.with_patience(PATIENCE);
    let disk: DiskInfo = block_on(async {
        let path = path_of(&client, &args.name, &args.disk).await?;
        let request = DiskSizeRequest { path, bytes: args.size };
        let answer = client.put_json("/v1/guest/disk", &request).await;
        answer.with_context(|| format!("cannot resize a disk of {}", args.name))
    })?;
    match args.json.output() {
        Output::Json => output::print_json(&disk)?,
        Output::Text => {
            let (path, size) = (disk.path.display(), format_size(disk.bytes));
            output::print_line(format_args!("{path} of {} has {size}", args.name))?;
        }
    }
    Ok(Exit::Done)
}
