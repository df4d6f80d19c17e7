//! What the transport of memory cannot go below on this host: the least that each kind of work
//! takes for a GiB, measured alone.
//!
//! `cargo bench -p migrate --bench floor -- [MIB] [RUNS]` (512 MiB, 5 runs by default; medians). A
//! migration over loopback needs each kind at least as often as the table says.

use std::hint::black_box;
use std::net::UdpSocket;
use std::time::Instant;

use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{Keys, PacketKey, Version};
use xxhash_rust::xxh3::xxh3_64;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;
/// Does a kind of work; returns the seconds that it took.
type Work<'a> = &'a dyn Fn() -> Outcome<f64>;

const PAGE: usize = 4096;
/// A chunk of guest memory, the unit of a copy.
const CHUNK: usize = 256 << 10;
/// The payload of a packet on loopback.
const PACKET: usize = 65_000;
/// What authenticates a packet.
const TAG: usize = 16;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().filter(|it| it != "--bench").collect();
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |it| it.parse());
    let (mib, runs): (usize, usize) = (number(1, 512)?, number(2, 5)?);
    let memory: Vec<u8> = words(mib << 20).flat_map(u64::to_le_bytes).collect();
    println!("| work | needed at least | s per GiB |\n| --- | --- | --- |");
    let rows: [(&str, &str, Work<'_>); 6] = [
        ("copying memory that is in no cache", "once on either side", &|| copy(&memory)),
        ("first touch of small pages", "once, at the destination, unless pages are huge", &|| {
            Ok(touch(memory.len()))
        }),
        ("AES-128-GCM, encrypting", "once, at the source", &|| encrypt(&memory)),
        ("AES-128-GCM, decrypting", "once, at the destination", &|| decrypt(&memory)),
        ("the kernel's UDP, sending and receiving", "once", &|| udp(memory.len())),
        ("checksums (xxh3) of what is in the cache", "never: packets are authenticated", &|| {
            Ok(checksum(&memory))
        }),
    ];
    for (work, needed, measure) in rows {
        let mut seconds = (0..runs).map(|_| measure()).collect::<Outcome<Vec<_>>>()?;
        seconds.sort_by(f64::total_cmp);
        let each_gib = seconds[runs / 2] * 1024.0 / mib as f64;
        println!("| {work} | {needed} | {each_gib:.3} |");
    }
    Ok(())
}

/// Random content of `bytes`.
fn words(bytes: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
    .take(bytes / 8)
}

fn seconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

/// Copies all memory, chunk by chunk, to one place that stays in the cache.
fn copy(memory: &[u8]) -> Outcome<f64> {
    let mut place = vec![1; CHUNK];
    Ok(seconds(|| {
        for chunk in memory.chunks_exact(CHUNK) {
            black_box(&mut place).copy_from_slice(black_box(chunk));
        }
    }))
}

/// Writes a byte to each page of memory that nothing has touched yet.
fn touch(bytes: usize) -> f64 {
    let mut memory = Vec::with_capacity(bytes);
    let spare = memory.spare_capacity_mut();
    seconds(|| {
        for page in spare.chunks_mut(PAGE) {
            black_box(page)[0].write(1_u8);
        }
    })
}

/// The key of packets on their way from a client to its server.
fn key(side: Side) -> Outcome<Box<dyn PacketKey>> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().ok_or("not a suite of TLS 1.3")?;
    let quic = suite.quic.ok_or("a suite without QUIC")?;
    let keys = Keys::initial(Version::V1, suite, quic, &[7; 8], side);
    Ok(if side == Side::Client { keys.local.packet } else { keys.remote.packet })
}

/// Encrypts all memory, packet by packet, in a place that stays in the cache.
fn encrypt(memory: &[u8]) -> Outcome<f64> {
    let (key, mut place) = (key(Side::Client)?, memory[..PACKET].to_vec());
    let mut failed = Ok(());
    let took = seconds(|| {
        for number in 0..memory.len() / PACKET {
            if let Err(error) = key.encrypt_in_place(number as u64, &[], black_box(&mut place)) {
                failed = Err(error);
            }
        }
    });
    Ok(failed.map(|()| took)?)
}

/// Decrypts as many packets; each needs its cipher text, whose copy is not counted.
fn decrypt(memory: &[u8]) -> Outcome<f64> {
    let (from, to) = (key(Side::Client)?, key(Side::Server)?);
    let mut sealed = memory[..PACKET].to_vec();
    let tag = from.encrypt_in_place(1, &[], &mut sealed)?;
    sealed.extend_from_slice(tag.as_ref());
    let (mut place, mut took) = (sealed.clone(), 0.0);
    for _ in 0..memory.len() / PACKET {
        place.copy_from_slice(&sealed);
        let began = Instant::now();
        let opened = to.decrypt_in_place(1, &[], black_box(&mut place))?.len();
        took += began.elapsed().as_secs_f64();
        assert_eq!(opened + TAG, sealed.len(), "a packet that is whole");
    }
    Ok(took)
}

/// Sends as many bytes over loopback, and takes each packet at once: two copies by the kernel.
fn udp(bytes: usize) -> Outcome<f64> {
    let (near, far) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    near.connect(far.local_addr()?)?;
    let mut place = vec![7; PACKET];
    let began = Instant::now();
    for _ in 0..bytes / PACKET {
        near.send(&place)?;
        far.recv(&mut place)?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Sums as many bytes of a chunk that is in the cache.
fn checksum(memory: &[u8]) -> f64 {
    let place = &memory[..CHUNK];
    seconds(|| {
        for _ in memory.chunks_exact(CHUNK) {
            black_box(xxh3_64(black_box(place)));
        }
    })
}
