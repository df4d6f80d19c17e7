//! The client that sends data to the guests.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::lan::Lan;

/// Limit for a part to come back.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes per read.
const READ_BYTES: usize = 64 << 10;

/// A TCP connection to a guest, through busybox.
pub(crate) struct Client {
    process: Child,
    input: ChildStdin,
    /// Data that came back.
    echoed: Receiver<Vec<u8>>,
    sent: u64,
}

impl Client {
    /// Connects to the guest's echo program.
    ///
    /// # Errors
    /// If busybox cannot be started.
    pub(crate) fn connect(lan: &Lan, address: &str) -> Result<Self> {
        let mut process = lan
            .command("busybox")
            .args(["nc", address, "7000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start busybox: apt-get install busybox-static")?;
        let input = process.stdin.take().context("no pipe")?;
        let mut output = process.stdout.take().context("no pipe")?;
        let (sender, echoed) = channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; READ_BYTES];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, input, echoed, sent: 0 })
    }

    /// Sends `kib` KiB and waits for them; returns how long that took.
    ///
    /// # Errors
    /// If the data does not come back, or differs.
    pub(crate) fn echo(&mut self, kib: usize) -> Result<Duration> {
        let words = (self.sent..).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let data: Vec<u8> = words.take(kib * 128).flat_map(u64::to_le_bytes).collect();
        self.sent += kib as u64 * 128;
        let mut input = &self.input;
        let began = Instant::now();
        let mut back = Vec::with_capacity(data.len());
        std::thread::scope(|scope| {
            scope.spawn(|| input.write_all(&data));
            while back.len() < data.len() {
                match self.echoed.recv_timeout(PATIENCE) {
                    Ok(bytes) => back.extend(bytes),
                    Err(_) => bail!("only {} of {} bytes came back", back.len(), data.len()),
                }
            }
            Ok(())
        })?;
        let took = began.elapsed();
        ensure!(back == data, "other bytes came back than were sent");
        Ok(took)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The process may have exited on its own, which is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The mean round trip of `count` echo requests, in milliseconds.
///
/// # Errors
/// If the guest does not answer all of them.
pub(crate) fn ping(lan: &Lan, address: &str, count: u32) -> Result<f64> {
    let count = count.to_string();
    let output =
        lan.command("busybox").args(["ping", "-q", "-i", "0.2", "-c", &count, address]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && text.contains(" 0% packet loss"), "ping: {text}");
    // The line to parse: round-trip min/avg/max = 0.1/0.2/0.3 ms
    let mean = text.rsplit(" = ").next().and_then(|times| times.split('/').nth(1)?.parse().ok());
    mean.with_context(|| format!("ping said {text}"))
}
