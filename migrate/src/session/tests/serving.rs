//! Destinations that break the rules while memory follows its guest: what serves that memory stays
//! bounded, and ends when it is told to.

use std::sync::Arc;

use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::context;
use super::memory::Content;
use super::world::{FakeSource, in_time};
use crate::memory::PageSet;
use crate::progress::Transfer;
use crate::protocol::page_request::PageRequest;
use crate::protocol::preamble::PREAMBLE_BYTES;
use crate::protocol::{MigrationId, Token};
use crate::quic::pair::Pair;
use crate::quic::{Authority, Tls};
use crate::session::sender::Route;
use crate::session::serve::{Further, Server};
use crate::session::totals::Totals;

/// Chunks of the guest, all of which the destination lacks: 4 MiB.
const CHUNKS: usize = 16;
/// Pages of the guest.
const PAGES: u64 = CHUNKS as u64 * 64;

/// A source that serves all of a guest's memory, and the destination's end in the hands of a test.
struct Served {
    server: Server,
    totals: Arc<Totals>,
    tasks: JoinSet<()>,
    /// Where the destination asks for pages, and gets them.
    requests: (SendStream, RecvStream),
    far: Connection,
    _pair: Pair,
}

impl Served {
    async fn start() -> Self {
        let pair = Pair::new().await;
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let context = context(FakeSource::new(CHUNKS, Content::Random), CHUNKS);
        let totals = context.totals.clone();
        let route = Route {
            connections: vec![pair.near.clone()],
            generation: 1,
            are_links: false,
            name: "host-b".to_owned(),
            streams: 0,
            migration: MigrationId::random(),
            token: Token::random(),
        };
        let further = Further { peers: Vec::new(), tls: Tls::new(&identity).unwrap() };
        let mut tasks = JoinSet::new();
        let server = Server::start(context, route, further, PageSet::full(CHUNKS), &mut tasks);
        let far = pair.far.clone();
        let (send, mut receive) = in_time(far.accept_bi()).await.unwrap();
        in_time(receive.read_exact(&mut [0; PREAMBLE_BYTES])).await.unwrap();
        Self { server, totals, tasks, requests: (send, receive), far, _pair: pair }
    }

    fn sent(&self) -> Transfer {
        self.totals.read()
    }
}

/// It asks for one page without end. The page is sent once, and all others follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_requested_endlessly_is_sent_once_and_holds_up_no_other() {
    let Served { server, totals, mut tasks, requests, far, _pair } = Served::start().await;
    let (mut send, mut answers) = requests;
    let request = PageRequest { chunk: 3, pages: 1 }.encode();
    let asking = tokio::spawn(async move {
        while send.write_all(&request).await.is_ok() {
            // Otherwise this holds the connection's lock without end.
            tokio::task::yield_now().await;
        }
    });
    let mut first = [0; 1];
    in_time(answers.read_exact(&mut first)).await.unwrap();
    server.send_rest();

    let mut rest = in_time(far.accept_uni()).await.unwrap();
    let bytes = in_time(rest.read_to_end(16 << 20)).await.unwrap();

    assert!(bytes.len() as u64 > (PAGES - 64) * 4096, "{} bytes", bytes.len());
    assert_eq!(totals.read().pages(), PAGES, "each page is sent once");
    assert!(!asking.is_finished());
    drop(server);
    in_time(async { while tasks.join_next().await.is_some() {} }).await;
    in_time(asking).await.unwrap();
}

/// It asks for all pages, and reads none of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_reads_no_answer_is_not_waited_for_at_the_end() {
    let mut served = Served::start().await;
    for chunk in 0..CHUNKS as u64 {
        let request = PageRequest { chunk, pages: u64::MAX }.encode();
        served.requests.0.write_all(&request).await.unwrap();
    }
    served.server.send_rest();
    in_time(async {
        while served.sent().pages() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let Served { server, mut tasks, .. } = served;
    drop(server);
    in_time(async { while tasks.join_next().await.is_some() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_outside_memory_closes_the_connection() {
    let mut served = Served::start().await;
    let request = PageRequest { chunk: CHUNKS as u64, pages: 1 }.encode();
    served.requests.0.write_all(&request).await.unwrap();
    let closed = in_time(served.far.closed()).await.to_string();
    assert!(closed.contains("requests pages 0x1 of chunk 16, but the guest has 16"), "{closed}");
    assert_eq!(served.sent().pages(), 0);
}
