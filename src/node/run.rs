//! Starts the node's parts in the order of their dependencies, and ends them when the node is told
//! to exit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use migrate::quic::endpoint::{self, Endpoint};
use migrate::quic::{Identity, Tls};
use rustix::process::Resource;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use vmm_core::vfio::HostDevice;

use super::access::{Access, Authorization};
use super::quic::{NodeClient, SourceRequests};
use super::renewal::Renewal;
use super::resolver::Resolver;
use super::service::Node;
use super::types::NodeFile;
use super::{api, autostart, certificates, config, events, exposition};
use crate::api::server::{Audience, Server};
use crate::cli::LogArgs;
use crate::cli::host::NodeArgs;
use crate::cli::host_device::HostDeviceArg;
use crate::cli::net::NetAllowed;
use crate::clock::unix_ms;
use crate::density::Density;
use crate::disk_places::DiskPlaces;
use crate::durable;
use crate::exit::Exit;
use crate::file_lock::FileLock;
use crate::resource_limits;
use crate::signals::{EndSignal, EndSignals};
use crate::state_dir::StateDir;
use crate::version::VERSION;

/// Shortest pause between two passes over the records.
const ROUND: Duration = Duration::from_secs(2);

/// With very many records, the pause after a pass is this many times the length of the pass.
const ROUNDS_SHARE: u32 = 50;

/// How long to wait for peers to learn that the node ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Runs `lighter node` until a signal ends it.
///
/// # Errors
/// If another node serves this state folder, there are no certificates, its file cannot be read, or
/// an address cannot be used.
pub(crate) fn run(state: &StateDir, args: &NodeArgs, log: &LogArgs) -> Result<Exit> {
    let args = &config::complete(args)?;
    raise_file_limit();
    state.create()?;
    let _lock = lock(&state.node_lock())?;
    let mut renewal = Renewal::new(state.certs());
    // Now, as the certificate may have expired while no node ran.
    renewal.check();
    let identity = Identity::load(&state.certs())?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    let ended = runtime.block_on(serve(state, args, log, (identity, renewal)));
    // Reads of /proc of a process that hangs may never return: they end with this process.
    runtime.shutdown_background();
    ended
}

/// Allows as many open files as the system lets this process have: the node has a connection to
/// each guest at all times, and another while it inspects all of them.
fn raise_file_limit() {
    if let Err(error) = resource_limits::raise(Resource::Nofile) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Takes the lock that makes this the only node of the state folder.
fn lock(path: &Path) -> Result<FileLock> {
    let lock =
        FileLock::try_acquire(path).with_context(|| format!("cannot lock {}", path.display()))?;
    match lock {
        Some(lock) => Ok(lock),
        None => bail!(
            "a node serves this state folder already ({} is locked): to give it other options, write them to its file \
             (/etc/lighter/node.toml of lighter-node.service) and restart it; another one needs another --state-dir",
            path.display()
        ),
    }
}

async fn serve(
    state: &StateDir,
    args: &NodeArgs,
    log: &LogArgs,
    certificate: (Identity, Renewal),
) -> Result<Exit> {
    let mut end = EndSignals::listen()?;
    let serving = Serving::start(state, args, log, certificate).await?;
    let signal = end.next().await;
    serving.end(signal).await?;
    Ok(Exit::Done)
}

/// A node that serves.
struct Serving {
    node: Arc<Node>,
    density: Arc<Density>,
    endpoint: Endpoint,
    sockets: [(PathBuf, Audience); 2],
    servers: Vec<Server>,
    parts: [JoinHandle<()>; 6],
}

impl Serving {
    async fn start(
        state: &StateDir,
        args: &NodeArgs,
        log: &LogArgs,
        (identity, renewal): (Identity, Renewal),
    ) -> Result<Self> {
        let endpoint = endpoint::listen(args.listen(), &Tls::new(&identity)?)?;
        let listener = exposition::bind(args.metrics()).await?;
        let (web, access) = access_to_metrics(args, &identity)?;
        let sockets = [
            (state.node_socket(), Audience::Owner),
            (state.node_readonly_socket(), Audience::AnyUser),
        ];
        sockets.iter().try_for_each(|(path, _)| durable::remove_if_there(path))?;
        let file = NodeFile {
            pid: std::process::id(),
            version: VERSION.to_owned(),
            listen: endpoint.local_addr().context("cannot tell where migrations arrive")?,
            metrics: listener.local_addr().context("cannot tell where metrics are served")?,
            started_unix_ms: unix_ms(),
        };
        let node = node(state, args, log, &file)?;
        let counted = Arc::clone(node.density_counted());
        let foreign = args.foreign_guests.unwrap_or_default();
        let density = Arc::new(Density::start(state, foreign, counted)?);
        events::count_lost_guests(&node)?;
        // Before any guest can be admitted.
        node.renew_promises().await?;
        let requests = Arc::new(SourceRequests(Arc::clone(&node)));
        let parts = [
            tokio::spawn(migrate::front::serve(endpoint.clone(), requests)),
            exposition::serve(listener, Arc::clone(&node), Arc::clone(&density), access),
            certificates::keep(Arc::clone(&node), endpoint.clone(), web, renewal, identity),
            tend_records(Arc::clone(&node), NodeClient::new(state.certs())),
            tokio::spawn(events::follow_guests(Arc::clone(&node))),
            tokio::spawn(autostart::start_guests(Arc::clone(&node))),
        ];
        let serve = |(path, audience): &(PathBuf, Audience)| {
            let routes = api::router(Arc::clone(&node), Arc::clone(&density), *audience);
            Server::start(path, routes, *audience)
        };
        let servers = sockets.iter().map(serve).collect::<Result<Vec<_>>>()?;
        density.opened().await;
        // Last: a process that reads this file, or was told by systemd, finds everything served.
        durable::write_json(&state.node_file(), &file)?;
        tell_systemd();
        let guests = state.live_guests()?.len();
        tracing::info!(listen = %file.listen, metrics = %file.metrics, state = %state.root().display(), guests, "the node serves");
        Ok(Self { node, density, endpoint, sockets, servers, parts })
    }

    /// Ends the node, because of `signal`; guests keep running.
    async fn end(self, signal: EndSignal) -> Result<()> {
        let state = self.node.state();
        self.node.shut_down();
        tracing::info!(
            %signal,
            guests = state.live_guests()?.len(),
            "the node ends; guests keep running"
        );
        durable::remove_if_there(&state.node_file())?;
        self.sockets.iter().try_for_each(|(path, _)| durable::remove_if_there(path))?;
        self.endpoint.close(0_u32.into(), b"the node ends");
        let _all_notified = tokio::time::timeout(CLOSE_PATIENCE, self.endpoint.wait_idle()).await;
        for server in self.servers {
            server.close().await;
        }
        for part in self.parts {
            part.abort();
        }
        self.density.shut_down().await;
        Ok(())
    }
}

/// Tells systemd, if it has started the node, that the node serves.
fn tell_systemd() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell systemd that the node serves");
    }
}

/// Makes the node as the options say.
fn node(state: &StateDir, args: &NodeArgs, log: &LogArgs, file: &NodeFile) -> Result<Arc<Node>> {
    for HostDeviceArg { address } in &args.device {
        if let Err(error) = HostDevice::expect_ready(*address) {
            tracing::warn!(%error, "a device of --device is not there yet");
        }
    }
    let disk_places = DiskPlaces::open(&args.disk_dir, &args.disk_device)?;
    let node = Node::new(state.clone(), file.clone(), args.reserve_memory())?
        .with_ports(args.ports())
        .with_networks(args.net_map.clone(), NetAllowed::new(args.net_allow.clone()))
        .with_disk_places(disk_places)
        .with_given_devices(args.device.iter().map(|device| device.address).collect())
        .with_log(log.clone());
    Ok(Arc::new(node))
}

/// Returns what a client of metrics must send, and the channel that replaces the certificates it is
/// shown.
fn access_to_metrics(
    args: &NodeArgs,
    identity: &Identity,
) -> Result<(watch::Sender<TlsAcceptor>, Access)> {
    let (web, tls) = watch::channel(certificates::acceptor(identity)?);
    let authorization = args.metrics_auth.as_deref().map(Authorization::read).transpose()?;
    Ok((web, Access { tls: args.metrics_tls().then_some(tls), authorization }))
}

/// Passes over the records at intervals, and settles the orphans among them.
fn tend_records(node: Arc<Node>, client: NodeClient) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut resolver = Resolver::new(node.records().clone(), client);
        let mut pause = Duration::ZERO;
        loop {
            sleep(pause).await;
            let begin = Instant::now();
            let found = tokio::task::block_in_place(|| node.process_records());
            pause = ROUND.max(begin.elapsed() * ROUNDS_SHARE);
            match found {
                Ok(orphans) => resolver.tend(&orphans),
                Err(error) => {
                    tracing::error!("cannot process the records of migrations: {error:#}");
                }
            }
        }
    })
}
