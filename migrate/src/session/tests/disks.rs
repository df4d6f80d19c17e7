//! Disks that are slow.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::super::receiver::{Memory, Space, receive};
use super::super::stream_sender::StreamSender;
use super::context;
use super::memory::{Content, FakeMemory};
use super::world::{FakeSource, FakeTarget};
use crate::guest::{GuestDescription, GuestError, SourceGuest};
use crate::memory::PageSet;
use crate::protocol::FEATURE_LZ4;
use crate::quic::pair::Pair;

/// A guest whose second chunk is on a disk; reads of it finish when the test says so.
struct Slow(Arc<FakeSource>, Mutex<Receiver<()>>, Notify);

impl SourceGuest for Slow {
    fn describe(&self) -> GuestDescription {
        self.0.describe()
    }
    fn start_dirty_log(&self) -> Result<(), GuestError> {
        self.0.start_dirty_log()
    }
    fn stop_dirty_log(&self) -> Result<(), GuestError> {
        self.0.stop_dirty_log()
    }
    fn collect_dirty(&self, words: &mut [u64]) -> Result<(), GuestError> {
        self.0.collect_dirty(words)
    }
    fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<(), GuestError> {
        self.0.rearm_dirty(first_chunk, words)
    }
    fn copy_out(&self, chunk: usize, first: usize, buf: &mut [u8]) -> Result<(), GuestError> {
        if chunk == 1 {
            self.2.notify_one();
            let received = self.1.lock().unwrap().recv_timeout(Duration::from_secs(10));
            received.map_err(|_| GuestError::new("the runtime waits for the disk"))?;
        }
        self.0.copy_out(chunk, first, buf)
    }
    fn pause(&self) -> Result<(), GuestError> {
        self.0.pause()
    }
    fn resume(&self) -> Result<(), GuestError> {
        self.0.resume()
    }
    fn is_running(&self) -> bool {
        self.0.is_running()
    }
    fn flush(&self) -> Result<(), GuestError> {
        self.0.flush()
    }
    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        self.0.save_state()
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_slow_disk_blocks_only_its_own_stream() {
    let (ready, inbox) = channel();
    let inner = FakeSource::new(2, Content::Random);
    let guest = Arc::new(Slow(inner, Mutex::new(inbox), Notify::new()));
    let context = context(guest.clone(), 1);
    let pair = Pair::new().await;
    let stream = pair.near.open_uni().await.unwrap();
    let mut stream_sender = StreamSender::new(context, pair.near.clone(), stream, (0, 1), 0);
    let mut dirty = PageSet::full(2);
    dirty.words_mut().copy_from_slice(&[1, 0b110]);
    let meanwhile = async {
        guest.2.notified().await;
        ready.send(()).unwrap();
    };
    let (sent, ()) = tokio::join!(stream_sender.send(1, &dirty, 3), meanwhile);
    let sent = sent.unwrap();
    assert_eq!((sent.raw_pages, sent.disk_pages), (1, 2));

    stream_sender.end(1).await.unwrap();
    let target = Arc::new(FakeTarget::new(2));
    let space = Space { memory_chunks: 1, chunks: 2, streams: 1 };
    let memory = Memory::new(target.clone(), space, FEATURE_LZ4, Arc::default());
    receive(Arc::new(memory), 0, pair.far.accept_uni().await.unwrap()).await.unwrap();
    let pages = |memory: &FakeMemory| memory.with(1, |bytes| bytes[4096..][..8192].to_vec());
    assert_eq!(pages(&guest.0.memory), pages(&target.memory));
}
