//! Whole migrations of memory between two processes over loopback: throughput, CPU time and
//! downtime.
//!
//! `cargo bench -p migrate --bench loopback -- [MIB] [RUNS] [ROWS]` (1024 MiB, 5 runs and all rows
//! by default). The source is this process and the destination a child of it, so that neither
//! profits from the other's caches. All memory is touched beforehand, so that the transport is
//! measured and not the first touch of memory.

#[path = "../../src/session/tests/memory.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod memory;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memory::{Content, FakeMemory};
use migrate::front::{FrontHandler, serve};
use migrate::guest::{DestinationGuest, GuestDescription, GuestError, GuestFactory, Refusal};
use migrate::memory::{MemoryLayout, Region};
use migrate::pages::Compression;
use migrate::protocol::front::{FrontReply, FrontRequest};
use migrate::quic::{Authority, Tls, endpoint};
use migrate::record::RecordStore;
use migrate::session::{
    DestinationSession, Handle, SourceSession, start_destination, start_source,
};
use migrate::text::Blob;
use migrate::{Limits, MigrationId, Report, SourceGuest, Token};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const CHUNK: u64 = 256 << 10;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().filter(|it| it != "--bench").collect();
    if arguments.get(1).map(String::as_str) == Some("destination") {
        return destination(Path::new(&arguments[2]), arguments[3].parse()?);
    }
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |it| it.parse());
    let (mib, runs, rows) = (number(1, 1024)?, number(2, 5)?, number(3, usize::MAX)?);
    println!(
        "{:8} {:5} conn   GB/s  CPU s/GiB source + destination  downtime ms  wire MB",
        "content", "lz4"
    );
    for (content, compression, connections) in [
        (Content::Random, Compression::Auto, 1),
        (Content::Random, Compression::Auto, 2),
        (Content::Random, Compression::Auto, 4),
        (Content::Random, Compression::Off, 1),
        (Content::Zero, Compression::Auto, 1),
        (Content::Text, Compression::Auto, 1),
        (Content::Text, Compression::Lz4, 1),
        (Content::Mixed, Compression::Auto, 1),
    ]
    .into_iter()
    .take(rows)
    {
        for _ in 0..runs {
            measure(mib, content, compression, connections)?;
        }
    }
    Ok(())
}

/// Runs one migration and prints it as a row of the table.
fn measure(
    mib: usize,
    content: Content,
    compression: Compression,
    connections: u16,
) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    Authority::create()?.issue(&["127.0.0.1".into()])?.save(folder.path())?;
    let memory = FakeMemory::new(mib * 4);
    memory.fill(content, 1);
    let guest = Arc::new(Idle(memory));

    let mut child = Command::new(std::env::current_exe()?)
        .args(["destination".as_ref(), folder.path().as_os_str()])
        .arg(mib.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut line =
        || said.next().ok_or("the destination ended")?.map_err(Box::<dyn std::error::Error>::from);
    let port = line()?.parse()?;

    let session = SourceSession {
        migration: MigrationId::random(),
        host: "127.0.0.1".into(),
        port,
        server_name: None,
        limits: Limits::default(),
        bandwidth: None,
        compression,
        connections: Some(connections),
        links: Vec::new(),
        addresses: Vec::new(),
        node_port: None,
        estimate: None,
    };
    let records = RecordStore::open(&folder.path().join("source"))?;
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let handle = start_source(session, guest, Tls::load(folder.path())?, records)?;
    let report = wait(&handle)?;
    let took = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    let cpu_there: f64 = line()?.parse()?;
    child.wait()?;
    print_line(&report, (content, compression, connections), took, (cpu, cpu_there), mib);
    Ok(())
}

fn print_line(
    report: &Report,
    (content, compression, connections): (Content, Compression, u16),
    took: f64,
    (cpu, cpu_there): (f64, f64),
    mib: usize,
) {
    let gib = mib as f64 / 1024.0;
    let rate = report.memory_bytes as f64 / 1e9 / took;
    let first =
        report.rounds.first().map_or(0.0, |round| round.wire_bytes as f64 / 1e9 / round.seconds);
    let downtime = report.downtime_seconds.unwrap_or(f64::NAN) * 1e3;
    let wire = report.transfer.wire_bytes as f64 / 1e6;
    println!(
        "{:8} {:5} {connections:4} {rate:6.3}  {:5.2} + {:5.2}  {downtime:11.1}  {wire:7.0}  (first round {first:.2} GB/s on the wire) {}",
        format!("{content:?}"),
        format!("{compression:?}"),
        cpu / gib,
        cpu_there / gib,
        report.error.as_ref().map_or("", |error| &error.message),
    );
}

fn wait(handle: &Handle) -> Outcome<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(handle.settled()).ok_or("no report")?)
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// A guest that writes nothing.
struct Idle(FakeMemory);

impl SourceGuest for Idle {
    fn describe(&self) -> GuestDescription {
        let region = Region { base: 0, bytes: self.0.chunks() as u64 * CHUNK };
        GuestDescription {
            name: "bench".into(),
            uuid: uuid::Uuid::from_u128(1),
            layout: MemoryLayout::new(vec![region]).expect("whole chunks"),
            vcpus: 1,
            config: Blob(Vec::new()),
            disks: Vec::new(),
            has_pci: false,
        }
    }
    fn start_dirty_log(&self) -> Result<(), GuestError> {
        Ok(())
    }
    fn stop_dirty_log(&self) -> Result<(), GuestError> {
        Ok(())
    }
    fn collect_dirty(&self, _: &mut [u64]) -> Result<(), GuestError> {
        Ok(())
    }
    fn rearm_dirty(&self, _: usize, _: &[u64]) -> Result<(), GuestError> {
        Ok(())
    }
    fn copy_out(&self, chunk: usize, first_page: usize, buf: &mut [u8]) -> Result<(), GuestError> {
        self.0.with(chunk, |bytes| buf.copy_from_slice(&bytes[first_page * 4096..][..buf.len()]));
        Ok(())
    }
    fn pause(&self) -> Result<(), GuestError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), GuestError> {
        Ok(())
    }
    fn is_running(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<(), GuestError> {
        Ok(())
    }
    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        Ok(vec![5; 20_000])
    }
}

/// The destination's memory.
struct Target(Arc<FakeMemory>);

impl DestinationGuest for Target {
    fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), GuestError> {
        self.0.with(chunk, |bytes| bytes[first_page * 4096..][..data.len()].copy_from_slice(data));
        Ok(())
    }
    fn zero(&self, _: usize, _: u64) -> Result<(), GuestError> {
        Ok(())
    }
    fn load_state(&self, _: &[u8]) -> Result<(), GuestError> {
        Ok(())
    }
    fn adopt(&self) -> Result<(), GuestError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        Ok(())
    }
}

struct Factory(Arc<FakeMemory>);

impl GuestFactory for Factory {
    fn check(&self, _: &GuestDescription) -> Result<(), Refusal> {
        Ok(())
    }
    fn create(&self, _: &GuestDescription) -> Result<Arc<dyn DestinationGuest>, Refusal> {
        Ok(Arc::new(Target(self.0.clone())))
    }
}

struct Node {
    tls: Tls,
    factory: Arc<Factory>,
    records: RecordStore,
    arrived: Mutex<Option<std::sync::mpsc::Sender<Handle>>>,
}

impl FrontHandler for Node {
    async fn answer(
        &self,
        request: FrontRequest,
        _: SocketAddr,
        _: Option<uuid::Uuid>,
    ) -> FrontReply {
        let FrontRequest::Admit { migration, guest, .. } = request else { unreachable!() };
        let token = Token::random();
        let session = DestinationSession {
            migration,
            token,
            listen: LOOPBACK.into(),
            ports: 0..=0,
            guest: guest.name,
            guest_uuid: guest.uuid,
            linger: Duration::from_secs(10),
            postcopy: false,
        };
        let (factory, records) = (self.factory.clone(), self.records.clone());
        let started = start_destination(session, factory, &self.tls, records);
        let handle = started.expect("a session");
        let port = handle.port();
        if let Some(arrived) = self.arrived.lock().expect("no panic").take() {
            let _ = arrived.send(handle);
        }
        FrontReply::Admitted { port, token }
    }
}

/// The child process: receives one guest, then prints the CPU time that it took.
fn destination(folder: &Path, mib: usize) -> Outcome<()> {
    let memory = Arc::new(FakeMemory::new(mib * 4));
    (0..memory.chunks()).for_each(|chunk| memory.with(chunk, |bytes| bytes.fill(0)));
    let tls = Tls::load(folder)?;
    let (send, arrived) = std::sync::mpsc::channel();
    let node = Arc::new(Node {
        tls: tls.clone(),
        factory: Arc::new(Factory(memory)),
        records: RecordStore::open(&folder.join("destination"))?,
        arrived: Mutex::new(Some(send)),
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let entered = runtime.enter();
    let endpoint = endpoint::listen(SocketAddr::new(LOOPBACK.into(), 0), &tls)?;
    let port = endpoint.local_addr()?.port();
    runtime.spawn(serve(endpoint, node));
    drop(entered);
    let cpu = cpu_seconds();
    println!("{port}");
    std::io::stdout().flush()?;
    let handle = arrived.recv()?;
    runtime.block_on(handle.settled()).ok_or("no report")?;
    println!("{}", cpu_seconds() - cpu);
    Ok(())
}
