//! Migrations that are refused before anything is sent, each with a message that says why.

use super::cancel::slow;
use super::memory::Content;
use super::world::{FakeSource, LOOPBACK, World, in_time};
use crate::guest::SourceGuest;
use crate::progress::Role;
use crate::protocol::Token;
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::quic::{Authority, Tls, endpoint};
use crate::report::Report;
use crate::session::SourceSession;

async fn refused(world: &World, session: SourceSession) -> String {
    let guest = FakeSource::new(2, Content::Text);
    let handle = world.start(session, &guest);
    let Report { error, .. } = world.assert_stayed(&guest, &handle).await;
    error.expect("an error").message
}

fn assert_says(message: &str, what: &str) {
    assert!(message.contains(what), "{message:?} does not say {what:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_node() {
    let world = World::with(|node| node.refuse = Some("host-b has 1 of 2 GiB"));
    let message = refused(&world, world.session()).await;
    assert_says(&message, "host-b has 1 of 2 GiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_process() {
    let factory = super::world::Factory { refuse: Some("no AVX2 here"), ..Default::default() };
    let world = World::with(|node| node.factory = factory.into());
    assert_says(&refused(&world, world.session()).await, "no AVX2 here");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_another_guest_than_was_admitted() {
    let admitted = uuid::Uuid::from_u128(77);
    let world = World::with(|node| node.expects = Some(admitted));
    assert_says(&refused(&world, world.session()).await, "not the guest that this host was asked");
    let (records, _damaged) = world.node.records.list().unwrap();
    assert!(records.iter().all(|record| record.guest_uuid == admitted), "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_another_authority() {
    let other = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
    let world = World::with(|node| node.tls = Tls::new(&other).unwrap());
    let message = refused(&world, world.session()).await;
    assert_says(&message, "not issued by the authority");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_certificate_of_an_authority_unknown_there() {
    let mut world = World::new();
    let mut stranger = Authority::create().unwrap().issue(&["a".into()]).unwrap();
    stranger.ca_pem.clone_from(&world.identity.ca_pem);
    world.tls = Tls::new(&stranger).unwrap();
    let message = refused(&world, world.session()).await;
    assert_says(&message, "refuses this host's certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_another_name() {
    let world = World::new();
    let session = SourceSession { server_name: Some("host-b".into()), ..world.session() };
    assert_says(&refused(&world, session).await, "not valid for the name host-b");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_another_protocol() {
    let mut world = World::new();
    world.tls = Tls::with_alpn(&world.identity, b"lighter/9").unwrap();
    assert_says(&refused(&world, world.session()).await, "does not speak the migration protocol");
}

#[tokio::test(flavor = "multi_thread")]
async fn for_the_wrong_token() {
    let world = World::with(|node| node.token_sent = Some(Token::random()));
    let guest = FakeSource::new(2, Content::Text);
    let handle = world.start(world.session(), &guest);
    // The process keeps waiting for the right source; in this test none comes.
    let there = world.arrival().await;
    let report = in_time(handle.settled()).await.unwrap();
    assert_says(&report.error.unwrap().message, "wrong token for this migration");
    there.cancel("the test").await.unwrap();
    in_time(there.settled()).await.unwrap();
    // The source may ask only later, for example after a power cut: the guest's identity is
    // recorded although the guest was never described.
    let record =
        world.node.records.read(there.migration(), Role::Destination, |_| true).unwrap().unwrap();
    assert_eq!(record.guest_uuid, guest.describe().uuid);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_port_is_closed() {
    let world = World::new();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    let message = refused(&world, SourceSession { port, ..world.session() }).await;
    assert_says(&message, "does not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_host_has_no_address() {
    let world = World::new();
    let host = "no-such-host.invalid".to_owned();
    let message = refused(&world, SourceSession { host, ..world.session() }).await;
    assert_says(&message, "no-such-host.invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_token_is_refused_and_changes_nothing() {
    let world = World::new();
    let guest = FakeSource::new(16, Content::Random);
    let handle = slow(&world, &guest).await;
    let port = world.arrival().await.port();
    let address = std::net::SocketAddr::new(LOOPBACK, port);
    let dialer = endpoint::dialer(address, &world.tls).unwrap();
    let peer = endpoint::Peer { address, name: "127.0.0.1".into() };
    let data = StreamRole::Data { stream: 0 };
    let both_ways =
        [StreamRole::Control, StreamRole::Requests, StreamRole::Link, StreamRole::LinkPages];
    for role in both_ways.into_iter().chain([data, StreamRole::Background]) {
        let connection = endpoint::connect(&dialer, &peer).await.unwrap();
        let migration = handle.migration();
        let preamble = Preamble { role, migration, token: Token::random() }.encode();
        let mut stream = match both_ways.contains(&role) {
            true => connection.open_bi().await.unwrap().0,
            false => connection.open_uni().await.unwrap(),
        };
        stream.write_all(&preamble).await.unwrap();
        let closed = in_time(connection.closed()).await.to_string();
        assert_says(&closed, "wrong token for this migration");
    }
    let mut progress = handle.progress();
    let sent = progress.borrow_and_update().transfer.frames;
    in_time(progress.wait_for(|progress| progress.transfer.frames > sent)).await.unwrap();
    handle.cancel("a test").await.unwrap();
    world.assert_stayed(&guest, &handle).await;
}
