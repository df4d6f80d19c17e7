//! A thread that creates the disks that are copied with a guest, and gives them their names.
//!
//! That needs the right to create, link and remove files in the folders of the node's `--disk-dir`,
//! where other guests have their disks. The guest's process never has this right: one thread starts
//! before the process is confined, creates only the disks that the node has admitted, and ends
//! before the guest runs.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use vmm_core::virtio::block::BlockConfig;
use vmm_core::{DeviceError, DiskContent};

use crate::disk_places::DiskPlaces;

/// The handle of the thread; the thread ends on request, or when this is dropped.
#[derive(Debug)]
pub(crate) struct Maker {
    orders: Mutex<Option<Sender<Order>>>,
    /// Awaited when this is dropped: the thread removes the files of a guest that does not arrive.
    thread: Option<JoinHandle<()>>,
}

/// A request to the thread, and the channel for its answer.
#[derive(Debug)]
enum Order {
    /// Create the file, still without its name, for an incoming disk.
    Make(BlockConfig, SyncSender<Result<BlockConfig, String>>),
    /// Give the files of all these disks their names.
    Name(Vec<Arc<DiskContent>>, SyncSender<Result<(), String>>),
}

/// The paths at which disks may be created.
#[derive(Debug)]
struct Admitted(Vec<PathBuf>);

impl Maker {
    /// Starts the thread in a process that is not confined yet. It may create `disks`, which the
    /// node has admitted, in `places`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(disks: &[PathBuf], places: &DiskPlaces) -> Result<Self> {
        let admitted = disks.iter().filter_map(|disk| places.place(disk).ok());
        let admitted = Admitted(admitted.collect());
        let (ask, asked) = channel();
        let carry_out = move || {
            let mut made = Vec::new();
            asked.into_iter().for_each(|order| made.extend(admitted.carry_out(order)));
            made.iter().for_each(BlockConfig::abandon);
        };
        let thread = std::thread::Builder::new().name("disk-maker".to_owned()).spawn(carry_out);
        let thread = Some(thread.context("cannot start a thread")?);
        Ok(Self { orders: Mutex::new(Some(ask)), thread })
    }

    /// Creates the file for `disk`, which is incoming.
    ///
    /// # Errors
    /// If the node has not admitted it, or the file system refuses.
    pub(super) fn make(&self, disk: &BlockConfig) -> Result<BlockConfig, String> {
        self.ask(|answer| Order::Make(disk.clone(), answer))
    }

    /// Gives all `disks` their names once they have arrived, as [`DiskContent::adopt`] does.
    ///
    /// # Errors
    /// If the node has not admitted one, or as for [`DiskContent::adopt`].
    pub(super) fn name(&self, disks: Vec<Arc<DiskContent>>) -> Result<(), String> {
        self.ask(|answer| Order::Name(disks, answer))
    }

    fn ask<T>(
        &self,
        order: impl FnOnce(SyncSender<Result<T, String>>) -> Order,
    ) -> Result<T, String> {
        let (answer, answered) = sync_channel(1);
        let gone = || "the thread that makes disks has ended".to_owned();
        // The lock is not held while waiting for the disk.
        let ask = self.orders().clone();
        ask.ok_or_else(gone)?.send(order(answer)).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// Whether the thread was told to end.
    pub(super) fn has_ended(&self) -> bool {
        self.orders().is_none()
    }

    /// Ends the thread, when the guest has its disks or brings none.
    pub(super) fn end(&self) {
        self.orders().take();
    }

    fn orders(&self) -> MutexGuard<'_, Option<Sender<Order>>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic handler already.
            let _ = thread.join();
        }
    }
}

impl Admitted {
    /// Returns the disk whose file was created, if any.
    fn carry_out(&self, order: Order) -> Option<BlockConfig> {
        let said = |error: DeviceError| error.to_string();
        // The receiver of the answer may be gone.
        match order {
            Order::Make(disk, answer) => {
                let admitted = self.expect([disk.path()]);
                let made = admitted.and_then(|()| disk.made().map_err(said));
                let _ = answer.send(made.clone());
                made.ok()
            }
            Order::Name(disks, answer) => {
                let disks: Vec<&DiskContent> = disks.iter().map(|disk| &**disk).collect();
                let admitted = self.expect(disks.iter().map(|disk| disk.path()));
                let _ =
                    answer.send(admitted.and_then(|()| DiskContent::adopt(&disks).map_err(said)));
                None
            }
        }
    }

    fn expect<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a std::path::Path>,
    ) -> Result<(), String> {
        match paths.into_iter().find(|path| !self.0.iter().any(|known| known == path)) {
            None => Ok(()),
            Some(other) => Err(format!("disk {} was not admitted by the node", other.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_core::virtio::block::{Access, Occupied};

    use super::*;

    #[test]
    fn it_makes_the_disks_that_were_admitted_and_no_others_until_it_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let [own, other] = ["own.raw", "other.raw"].map(|name| root.join(name));
        std::fs::write(&own, [0; 4096]).unwrap();
        let disk = BlockConfig::new(&own, Access::ReadWrite, "").unwrap();
        std::fs::remove_file(&own).unwrap();
        let disk = disk.arriving(Occupied::Refuse);
        let places = DiskPlaces::new(vec![root.clone()], Vec::new());
        let maker = Maker::start(&[own, PathBuf::from("/etc/passwd")], &places).unwrap();
        maker.make(&disk).unwrap();
        for other in [&other, std::path::Path::new("/etc/passwd")] {
            let refused = maker.make(&disk.at(other)).unwrap_err();
            assert!(refused.contains("not admitted"), "{refused}");
        }
        maker.end();
        assert!(maker.make(&disk).unwrap_err().contains("has ended"));
        assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
    }
}
