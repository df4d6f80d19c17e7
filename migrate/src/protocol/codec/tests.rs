//! Golden bytes, and bytes that are not messages.

use std::num::NonZeroU16;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::guest::{DiskCopy, ExistingFile, GuestDescription, Refusal, RefusalKind, RunState};
use crate::memory::{CHUNK_BYTES, MemoryLayout, PageSet, Region};
use crate::protocol::front::{
    AttachedThere, BootFile, DiskFeatures, DiskUser, FoundGuest, Onward, SoughtDisk,
};
use crate::protocol::{
    Complaint, Decision, Features, MigrationId, Offer, PageMasks, Prepare, SavedState, Takeover,
    Token, Version,
};
use crate::reason::Reason;
use crate::text::{Blob, MAX_TEXT_BYTES};

/// Decodes a whole frame.
fn decode_frame<M: Message>(frame: &[u8]) -> Result<M, CodecError> {
    let Some((first, body)) = frame.split_first_chunk::<HEAD_BYTES>() else {
        let detail = format!("{} bytes are no frame", frame.len());
        return Err(CodecError::Malformed { kind: 0, detail });
    };
    decode(head::<M>(*first)?, body)
}

fn id() -> MigrationId {
    MigrationId(Uuid::from_bytes(*b"0123456789abcdef"))
}

fn offer() -> Offer {
    Offer { versions: vec![Version(1), Version(2)], features: Features(1), software: "l 1".into() }
}

fn guest() -> GuestDescription {
    let bytes = CHUNK_BYTES as u64;
    GuestDescription {
        name: "web-1".to_owned(),
        uuid: Uuid::from_u128(5),
        layout: MemoryLayout::new(vec![Region { base: 0, bytes }]).unwrap(),
        vcpus: 2,
        config: Blob(vec![0xaa, 0xbb]),
        disks: Vec::new(),
        has_pci: false,
    }
}

fn pages() -> PageMasks {
    let mut set = PageSet::empty(3);
    set.insert(2, 0);
    set.insert(2, 2);
    PageMasks::of(&set)
}

fn source_messages() -> Vec<SourceMessage> {
    vec![
        SourceMessage::Hello { migration: id(), offer: offer() },
        SourceMessage::Resolve { migration: id(), decision: Decision::Commit },
        SourceMessage::Prepare(Prepare { guest: guest(), streams: 4 }),
        SourceMessage::Switchover,
        SourceMessage::State(SavedState {
            run_state: RunState::Paused,
            state: Blob(vec![1, 2, 3]),
        }),
        SourceMessage::Commit,
        SourceMessage::Abort(Complaint::new(Reason::Cancelled, "no")),
        SourceMessage::Finish,
        SourceMessage::Disks(vec![DiskCopy {
            device: 1,
            bytes: 8192,
            allocated_bytes: 4096,
            existing: ExistingFile::Replace,
        }]),
        SourceMessage::Node { port: NonZeroU16::new(4950).unwrap() },
        SourceMessage::Return,
        SourceMessage::Missing(pages()),
        SourceMessage::Withdraw(Complaint::new(Reason::Downtime, "late")),
        SourceMessage::Continue { migration: id() },
    ]
}

fn destination_messages() -> Vec<DestinationMessage> {
    vec![
        DestinationMessage::Welcome { version: Version(1), features: Features(1) },
        DestinationMessage::Refused(Refusal::new(RefusalKind::Memory, "full")),
        DestinationMessage::Prepared,
        DestinationMessage::Ready { load_us: 7 },
        DestinationMessage::Running(Takeover { resume_us: 9 }),
        DestinationMessage::Abort(Complaint::new(Reason::Data, "bad")),
        DestinationMessage::Discarded,
        DestinationMessage::Unknown,
        DestinationMessage::NotTaken(Complaint::new(Reason::Guest, "disk in use")),
        DestinationMessage::Cleared,
        DestinationMessage::Missing(pages()),
        DestinationMessage::Complete { longest_wait_us: 9 },
        DestinationMessage::Lost(Complaint::new(Reason::Guest, "no")),
        DestinationMessage::GaveUp(Complaint::new(Reason::Record, "full")),
        DestinationMessage::Applied { frames: vec![7, 0] },
        DestinationMessage::Returned,
    ]
}

fn front_requests() -> Vec<FrontRequest> {
    let (migration, token) = (id(), Token([3; 32]));
    vec![
        FrontRequest::Admit { migration, offer: offer(), guest: guest() },
        FrontRequest::Resolve { migration, token, decision: Decision::Aborted },
        FrontRequest::Find { uuid: migration.0, name: "web-1".into() },
        FrontRequest::Trace { uuid: migration.0, name: "web-1".into(), migration },
        FrontRequest::BootFiles { files: vec![BootFile { path: b"/k".to_vec(), digest: 7 }] },
        FrontRequest::Sink,
        FrontRequest::IsAttachable { device: "03:00.0".into() },
        FrontRequest::AttachDevice { migration, token, device: "03:00.0".into() },
        FrontRequest::DiskUsers {
            disk: SoughtDisk {
                path: "/dev/vdb".into(),
                features: DiskFeatures::Device { names: vec!["serial 7".to_owned()], bytes: 4096 },
            },
        },
    ]
}

fn front_replies() -> Vec<FrontReply> {
    vec![
        FrontReply::Admitted { port: 4951, token: Token([3; 32]) },
        FrontReply::Refused(Refusal::new(RefusalKind::Taken, "web-1 is here")),
        FrontReply::Resolved(DestinationMessage::Discarded),
        FrontReply::AskProcess { port: 4951 },
        FrontReply::Found(Some(FoundGuest {
            uuid: id().0,
            name: "web-1".into(),
            state: "running".into(),
            is_owned: true,
        })),
        FrontReply::Traced {
            guest: None,
            onward: Some(Onward {
                destination: "host-c".into(),
                server_name: "host-c".into(),
                node_address: ([192, 0, 2, 7], 4950).into(),
                migration: id(),
            }),
        },
        FrontReply::BootFiles(vec![true, false]),
        FrontReply::Sink { bytes_max: 4096 },
        FrontReply::Attachable,
        FrontReply::Attached(AttachedThere { address: "00:05.0".into(), is_noticed: true }),
        FrontReply::DiskUsers(vec![DiskUser {
            uuid: id().0,
            name: "web-1".into(),
            how: "writes it".into(),
        }]),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn survives<M: Message + PartialEq + std::fmt::Debug>(messages: &[M]) {
    for message in messages {
        let frame = encode(message).unwrap();
        assert_eq!(&decode_frame::<M>(&frame).unwrap(), message);
    }
}

#[test]
fn every_message_survives() {
    survives(&source_messages());
    survives(&destination_messages());
    survives(&front_requests());
    survives(&front_replies());
}

#[test]
fn kinds_are_distinct_over_all_types() {
    let mut kinds: Vec<u8> = source_messages().iter().map(Message::kind).collect();
    kinds.extend(destination_messages().iter().map(Message::kind));
    kinds.extend(front_requests().iter().map(Message::kind));
    kinds.extend(front_replies().iter().map(Message::kind));
    let all = kinds.len();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), all);
}

/// These bytes are the protocol: another version of this program must write and read the same.
#[test]
fn bytes_of_the_source_stay_as_they_are() {
    let id = format!("1000000000000000{}", hex(b"0123456789abcdef"));
    let offer = "0200000000000000 0100 0200 0100000000000000 0300000000000000 6c2031";
    let guest = "0500000000000000 7765622d31 \
                 1000000000000000 00000000000000000000000000000005 \
                 0100000000000000 0000000000000000 0000040000000000 \
                 0200 0200000000000000 aabb";
    let golden = [
        format!("6c430100 3b000000 00000000 {id} {offer}"),
        format!("6c430200 20000000 01000000 {id} 00000000"),
        format!("6c430300 4f000000 02000000 {guest} 0400"),
        "6c430400 04000000 03000000".to_owned(),
        "6c430500 13000000 04000000 01000000 0300000000000000 010203".to_owned(),
        "6c430600 04000000 05000000".to_owned(),
        "6c430700 10000000 06000000 0300 0200000000000000 6e6f".to_owned(),
        "6c430800 04000000 07000000".to_owned(),
        "6c430900 22000000 08000000 0100000000000000 0100 0020000000000000 0010000000000000 01000000"
            .to_owned(),
        "6c430a00 06000000 09000000 5613".to_owned(),
        "6c430b00 04000000 0a000000".to_owned(),
        "6c430c00 18000000 0b000000 0100000000000000 02000000 0500000000000000".to_owned(),
    ];
    for (message, golden) in source_messages().iter().zip(golden) {
        let golden: String = golden.split_whitespace().collect();
        assert_eq!(hex(&encode(message).unwrap()), golden, "{}", message.name());
    }
}

#[test]
fn bytes_of_the_destination_stay_as_they_are() {
    let golden = [
        "6c432100 0e000000 00000000 0100 0100000000000000",
        "6c432200 14000000 01000000 00000000 0400000000000000 66756c6c",
        "6c432300 04000000 02000000",
        "6c432400 0c000000 03000000 0700000000000000",
        "6c432500 0c000000 04000000 0900000000000000",
        "6c432600 11000000 05000000 0800 0300000000000000 626164",
        "6c432700 04000000 06000000",
        "6c432800 04000000 07000000",
        "6c432900 19000000 08000000 0900 0b00000000000000 6469736b20696e20757365",
        "6c432a00 04000000 09000000",
        "6c432b00 18000000 0a000000 0100000000000000 02000000 0500000000000000",
        "6c432c00 0c000000 0b000000 0900000000000000",
        "6c432d00 10000000 0c000000 0900 0200000000000000 6e6f",
    ];
    for (message, golden) in destination_messages().iter().zip(golden) {
        let golden: String = golden.split_whitespace().collect();
        assert_eq!(hex(&encode(message).unwrap()), golden, "{}", message.name());
    }
}

#[test]
fn bytes_about_disks_stay_as_they_are() {
    let golden = "6c434500 38000000 04000000 0800000000000000 2f6465762f766462 \
                  01000000 0100000000000000 0800000000000000 73657269616c2037 0010000000000000";
    let golden: String = golden.split_whitespace().collect();
    let asked = front_requests().pop().unwrap();
    assert_eq!(hex(&encode(&asked).unwrap()), golden);
    let id = format!("1000000000000000 {}", hex(b"0123456789abcdef"));
    let golden = format!(
        "6c436700 42000000 06000000 0100000000000000 {id} 0500000000000000 7765622d31 \
         0900000000000000 777269746573206974"
    );
    let golden: String = golden.split_whitespace().collect();
    let answered = front_replies().pop().unwrap();
    assert_eq!(hex(&encode(&answered).unwrap()), golden);
}

#[test]
fn bytes_about_boot_files_stay_as_they_are() {
    let is_asked = |request: &FrontRequest| matches!(request, FrontRequest::BootFiles { .. });
    let asked = front_requests().into_iter().find(is_asked).unwrap();
    let golden = "6c434600 26000000 05000000 0100000000000000 0200000000000000 2f6b \
                  07000000000000000000000000000000";
    let golden: String = golden.split_whitespace().collect();
    assert_eq!(hex(&encode(&asked).unwrap()), golden);
    let is_answered = |reply: &FrontReply| matches!(reply, FrontReply::BootFiles(_));
    let answered = front_replies().into_iter().find(is_answered).unwrap();
    let golden = "6c436800 0e000000 07000000 0200000000000000 0100";
    let golden: String = golden.split_whitespace().collect();
    assert_eq!(hex(&encode(&answered).unwrap()), golden);
}

#[test]
fn bytes_about_sinks_stay_as_they_are() {
    let asked = encode(&FrontRequest::Sink).unwrap();
    assert_eq!(hex(&asked), "6c4347000400000006000000");
    let answered = encode(&FrontReply::Sink { bytes_max: 4096 }).unwrap();
    assert_eq!(hex(&answered), "6c4369000c000000080000000010000000000000");
}

#[test]
fn bytes_about_devices_stay_as_they_are() {
    let device = || "03:00.0".into();
    let name = format!("0700000000000000{}", hex(b"03:00.0"));
    let asked = encode(&FrontRequest::IsAttachable { device: device() }).unwrap();
    assert_eq!(hex(&asked), format!("6c4348001300000007000000{name}"));
    let (migration, token) = (id(), Token([3; 32]));
    let asked = encode(&FrontRequest::AttachDevice { migration, token, device: device() }).unwrap();
    let proof = format!("1000000000000000{}{}", hex(b"0123456789abcdef"), "03".repeat(32));
    assert_eq!(hex(&asked), format!("6c4349004b00000008000000{proof}{name}"));
    let bytes = |reply: &FrontReply| hex(&encode(reply).unwrap());
    assert_eq!(bytes(&FrontReply::Attachable), "6c436a000400000009000000");
    let there = AttachedThere { address: device(), is_noticed: true };
    assert_eq!(bytes(&FrontReply::Attached(there)), format!("6c436b00140000000a000000{name}01"));
}

#[test]
fn a_head_is_refused_before_anything_is_allocated() {
    let head_of = |kind: u8, length: u32| {
        let [a, b, c, d] = length.to_le_bytes();
        [b'l', b'C', kind, 0, a, b, c, d]
    };
    assert_eq!(head::<SourceMessage>(head_of(6, 4)).unwrap().body_bytes(), 4);
    assert_eq!(
        head::<SourceMessage>(head_of(6, u32::MAX)),
        Err(CodecError::TooLong { kind: 6, bytes: u32::MAX as usize, limit: SMALL_LIMIT })
    );
    assert!(head::<SourceMessage>(head_of(5, STATE_LIMIT as u32)).is_ok());
    assert!(head::<SourceMessage>(head_of(5, STATE_LIMIT as u32 + 1)).is_err());
    assert_eq!(head::<SourceMessage>(head_of(33, 4)), Err(CodecError::UnknownKind(33)));
    let http = *b"GET / HT";
    assert_eq!(head::<SourceMessage>(http), Err(CodecError::BadHead(http)));
}

#[test]
fn lengths_inside_a_message_cannot_exceed_the_message() {
    // `State` that announces 2^36 bytes and has three.
    let mut frame = encode(&source_messages()[4]).unwrap();
    frame[16..24].copy_from_slice(&(1_u64 << 36).to_le_bytes());
    assert!(matches!(
        decode_frame::<SourceMessage>(&frame),
        Err(CodecError::Malformed { kind: 5, .. })
    ));
    // `Hello` with 2^40 versions.
    let mut frame = encode(&source_messages()[0]).unwrap();
    frame[36..44].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert!(decode_frame::<SourceMessage>(&frame).is_err());
}

#[test]
fn a_body_of_another_kind_or_with_a_tail_is_refused() {
    let mut frame = encode(&SourceMessage::Commit).unwrap();
    frame[8] = 7;
    assert!(decode_frame::<SourceMessage>(&frame).is_err(), "Finish in the head of Commit");
    let mut frame = encode(&SourceMessage::Commit).unwrap();
    frame[4] += 1;
    frame.push(0);
    assert!(decode_frame::<SourceMessage>(&frame).is_err(), "a byte too many");
}

#[test]
fn port_0_is_refused_as_a_nodes_port() {
    let mut frame = encode(&SourceMessage::Node { port: NonZeroU16::MIN }).unwrap();
    assert!(decode_frame::<SourceMessage>(&frame).is_ok());
    frame[HEAD_BYTES + 4] = 0;
    assert!(decode_frame::<SourceMessage>(&frame).is_err());
}

#[test]
fn an_invalid_layout_does_not_decode() {
    let mut frame = encode(&source_messages()[2]).unwrap();
    let bytes = (CHUNK_BYTES as u64).to_le_bytes();
    let at = frame.windows(8).position(|window| window == bytes).unwrap();
    frame[at] = 1;
    let error = decode_frame::<SourceMessage>(&frame).unwrap_err().to_string();
    assert!(error.contains("not made of whole"), "{error}");
}

#[test]
fn text_of_a_peer_is_truncated_and_cleaned_when_decoded() {
    // As written by a peer that does not use `PeerText`.
    let body = (6_u32, 3_u16, format!("{}\x1b[2J", "x".repeat(4000)));
    #[allow(clippy::disallowed_methods)] // only this module may use bincode
    let body = bincode::serde::encode_to_vec(&body, config()).unwrap();
    let mut frame = vec![b'l', b'C', 7, 0];
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);

    let message = decode_frame::<SourceMessage>(&frame).unwrap();

    let SourceMessage::Abort(complaint) = message else { panic!("not Abort") };
    assert!(complaint.text.as_str().len() <= MAX_TEXT_BYTES);
    assert!(!complaint.text.as_str().contains('\x1b'));
}

#[test]
fn a_message_beyond_its_limit_is_not_sent() {
    let mut guest = guest();
    guest.config = Blob(vec![0; DESCRIPTION_LIMIT]);
    let message = SourceMessage::Prepare(Prepare { guest, streams: 1 });
    assert!(matches!(encode(&message), Err(CodecError::TooLong { kind: 3, .. })));
}

/// Decodes as each message type; whatever decodes must encode again.
fn feed(frame: &[u8]) {
    if let Ok(message) = decode_frame::<SourceMessage>(frame) {
        encode(&message).unwrap();
    }
    if let Ok(message) = decode_frame::<DestinationMessage>(frame) {
        encode(&message).unwrap();
    }
    if let Ok(message) = decode_frame::<FrontRequest>(frame) {
        encode(&message).unwrap();
    }
    if let Ok(message) = decode_frame::<FrontReply>(frame) {
        encode(&message).unwrap();
    }
}

/// One of each message.
fn frames() -> Vec<Vec<u8>> {
    let source = source_messages().into_iter().map(|message| encode(&message));
    let destination = destination_messages().into_iter().map(|message| encode(&message));
    let requests = front_requests().into_iter().map(|message| encode(&message));
    let replies = front_replies().into_iter().map(|message| encode(&message));
    source.chain(destination).chain(requests).chain(replies).map(Result::unwrap).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        feed(&bytes);
    }

    #[test]
    fn any_body_behind_a_good_head_decodes_or_is_refused(
        kind in proptest::sample::select(frames().iter().map(|frame| frame[2]).collect::<Vec<_>>()),
        body in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut frame = vec![b'l', b'C', kind, 0];
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(body);
        feed(&frame);
    }

    #[test]
    fn a_damaged_message_decodes_or_is_refused(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut frame = which.get(&frames()).clone();
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        feed(&frame);
        feed(&frame[..cut.index(frame.len())]);
    }
}
