//! The dashboards and the alert rules in `dashboards/`, evaluated by a real Prometheus that scrapes
//! two nodes while guests migrate between them and while the nodes reclaim memory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::density::{POLICY, RUN_PATIENCE, await_plan, dense, restore_linux, write_settings};
use crate::metrics::MOVED_ELSEWHERE;
use crate::moved_elsewhere;
use support::checks::{guest_is_gone, nothing_left_behind};
use support::linux::image::Image;
use support::{Guest, GuestPlan, Host, Migration, NodePlan, Pair, wait};

/// The values that Grafana would substitute for its variables.
const VARIABLES: [(&str, &str); 5] = [
    ("$cluster", ".*"),
    ("$instance", ".*"),
    ("$guest", ".*"),
    ("$__rate_interval", "1m"),
    ("$__range", "5m"),
];

/// A Prometheus that scrapes some nodes every second; it ends with the test.
struct Prometheus {
    process: Child,
    log: PathBuf,
    address: String,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes the nodes of `hosts` and evaluates the alert rules.
    fn start(hosts: &[&Host]) -> Self {
        let targets: Vec<_> = hosts.iter().map(|host| metrics_address(host)).collect();
        Self::scraping(&format!(
            "{{ job_name: lighter, static_configs: [{{ targets: {targets:?} }}] }}"
        ))
    }

    /// Starts a Prometheus with these scrape jobs, in YAML.
    fn scraping(jobs: &str) -> Self {
        let folder = TempDir::with_prefix("lighter-").expect("a temporary folder");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/alerts.yml");
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs: [{jobs}]\n"
        );
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).expect("a configuration");
        let log = folder.path().join("log");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("prometheus (Debian's package), or LIGHTER_SKIP_PROMTOOL=1 to go without");
        let mut started = Self { process, log, address: String::new(), _folder: folder };
        started.address = wait::until("Prometheus listens", || started.listens());
        started
    }

    /// The address in Prometheus's log, once Prometheus is ready.
    fn listens(&self) -> Result<String, String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        if !log.contains("Server is ready") {
            return Err(log);
        }
        let line = log.lines().find(|line| line.contains("\"Listening on\""));
        let address = line.and_then(|line| line.split("address=").nth(1));
        let address = address.and_then(|rest| rest.split_whitespace().next());
        address.map(str::to_owned).ok_or(log)
    }

    /// Sends a GET request and returns the JSON answer.
    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).expect("Prometheus listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("Prometheus hears");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("Prometheus answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        serde_json::from_str(body).expect("JSON")
    }

    /// Number of series that `expression` yields.
    #[track_caller]
    fn series(&self, expression: &str) -> usize {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().expect("series").len()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn metrics_address(host: &Host) -> String {
    let file = fs::read(host.state_dir().join("node.json")).expect("node.json");
    let node: Value = serde_json::from_slice(&file).expect("JSON");
    node["metrics"].as_str().expect("an address").to_owned()
}

/// The expressions of a dashboard's panels, with Grafana's variables substituted.
fn expressions(file: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards").join(file);
    let dashboard: Value =
        serde_json::from_slice(&fs::read(file).expect("a dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let asked = targets.map(|target| {
        let expression = target["expr"].as_str().expect("an expression").to_owned();
        VARIABLES.iter().fold(expression, |text, (name, value)| text.replace(name, value))
    });
    asked.collect()
}

/// Slower than the guest writes, but fast enough that the first round ends soon.
const SLOWLY: [&str; 2] = ["--bandwidth", "2MB/s"];

/// Produces everything that the dashboard shows: a migration that succeeds, one that is refused,
/// one that is cancelled, and one that is still running when this returns.
fn busy(pair: &Pair, prometheus: &Prometheus) -> Migration {
    // Prometheus sees no increase of a counter that moved before the first scrape.
    wait::until("both nodes are scraped", || {
        let up = prometheus.series("up{job=\"lighter\"} == 1");
        wait::holds(up == 2, up)
    });
    // A guest's measurements of its last migration are reported by the host on which it stays.
    let settled = GuestPlan { name: "settled".to_owned(), ..GuestPlan::default() };
    let settled = Guest::start(&pair.a, &settled);
    Migration::run(&pair.a, settled.name(), &pair.b).ok();
    let guest = Guest::start(&pair.a, &GuestPlan { dirty_rate: 2000, ..GuestPlan::default() });
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    let namesake = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.b, guest.name(), &pair.a).stayed(&["already"]);
    pair.a.run(&["stop", namesake.name()]).ok();
    guest_is_gone(&[&pair.a], namesake.name());
    let called_off = Migration::start(&pair.b, guest.name(), &pair.a, &SLOWLY);
    called_off.await_phase("precopy");
    pair.b.run(&["cancel", guest.name()]).ok();
    called_off.finish().cancelled();
    // The destination refuses the guest while its own earlier process of that guest is still
    // ending.
    guest_is_gone(&[&pair.a], guest.name());
    let under_way = Migration::start(&pair.b, guest.name(), &pair.a, &SLOWLY);
    under_way.await_phase("precopy");
    under_way
}

#[test]
fn every_expression_of_dashboard_and_alerts_evaluates_on_live_nodes() {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("left out: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    let pair = Pair::new();
    let prometheus = Prometheus::start(&pair.hosts());
    let under_way = busy(&pair, &prometheus);

    let expressions = expressions("lighter-migrations.json");
    assert!(expressions.len() > 40, "{expressions:#?}");
    // The workload has no network, disks or balloon: the expressions about them yield no series and
    // no error.
    let elsewhere = moved_elsewhere::names(&MOVED_ELSEWHERE);
    let is_elsewhere = |text: &str| elsewhere.iter().any(|name| text.contains(name));
    wait::until("every panel shows something", || {
        let empty = |text: &&String| prometheus.series(text) == 0 && !is_elsewhere(text);
        let empty: Vec<_> = expressions.iter().filter(empty).collect();
        wait::holds(empty.is_empty(), empty)
    });

    wait::until("every alert rule has been evaluated", || {
        let answer = prometheus.get("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().expect("groups");
        let rules: Vec<_> =
            groups.iter().filter_map(|one| one["rules"].as_array()).flatten().collect();
        let is_fine = rules.len() > 5 && rules.iter().all(|rule| rule["health"] == "ok");
        wait::holds(is_fine, answer.clone())
    });
    // The downtime depends on the machine.
    let firing = "ALERTS{alertstate=\"firing\",alertname!=\"LighterDowntimeHigh\"}";
    assert_eq!(prometheus.series(firing), 0);

    pair.b.run(&["cancel", &GuestPlan::default().name]).ok();
    under_way.finish().cancelled();
    nothing_left_behind(&pair.hosts());
}

#[test]
fn metrics_are_read_by_https_with_the_password_and_not_without() {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("left out: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    let mut pair = Pair::without_nodes();
    let password = pair.folder().join("metrics.auth");
    fs::write(&password, "prometheus:s3cret\n").expect("a file");
    fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).expect("a file of ours");
    let options = ["--metrics-tls", "--metrics-auth", &password.display().to_string()];
    let arguments = options.map(str::to_owned).to_vec();
    pair.a.start_node(&NodePlan { arguments, ..NodePlan::default() });
    let target = metrics_address(&pair.a);
    let authority = pair.a.certs().join("ca.pem");
    let job = |name: &str, how: &str| {
        format!("{{ job_name: {name}, {how} static_configs: [{{ targets: [{target:?}] }}] }}")
    };
    let tls = format!("scheme: https, tls_config: {{ ca_file: {authority:?} }},");
    let auth = |password: &str| {
        format!("{tls} basic_auth: {{ username: prometheus, password: {password} }},")
    };
    let jobs = [
        job("right", &auth("s3cret")),
        job("wrong", &auth("secret")),
        job("without", &tls),
        job("plain", ""),
        job("untrusting", "scheme: https,"),
    ];
    let prometheus = Prometheus::scraping(&jobs.join(", "));
    let up = |is_up: u8| prometheus.series(&format!("up{{job!=\"prometheus\"}} == {is_up}"));
    wait::until("all have been tried", || {
        let seen = (up(1), up(0));
        wait::holds(seen == (1, 4), seen)
    });
    assert_eq!(prometheus.series("up{job=\"right\"} == 1"), 1);
    assert_eq!(prometheus.series("lighter_build_info{job=\"right\"}"), 1);
}

/// Whether an expression may yield no series: because nothing is wrong, or because the guest's
/// kernel is older than Linux 6.12 and does not count memory events.
fn may_be_empty(expression: &str) -> bool {
    let filters = ["> 0", "== 0", "== 1"];
    let untold = ["allocation_stalls", "direct_reclaim", "oom_kills", "_swap_", "major_faults"];
    let host = ["memory_pressure", "hugetlb"];
    filters.iter().any(|filter| expression.ends_with(filter))
        || untold.iter().chain(&host).any(|name| expression.contains(name))
}

#[test]
fn every_expression_of_the_density_dashboard_evaluates_on_a_node_with_linux() {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("left out: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    let pair = dense();
    let prometheus = Prometheus::start(&[&pair.a]);
    let image = Image::halting();
    let _witness = restore_linux(&pair.a, &image);
    await_plan(&pair.a);
    pair.a.run(&["density", "apply"]).ok();
    let schedule = "[[schedule]]\nname = \"often\"\ncron = \"* * * * *\"\ngoal = \"max density\"\n";
    write_settings(&pair.a, &format!("{POLICY}{schedule}"));

    let expressions = expressions("lighter-density.json");
    assert!(expressions.len() > 60, "{expressions:#?}");
    wait::within(RUN_PATIENCE, "every panel shows something", || {
        let empty = |text: &&String| prometheus.series(text) == 0 && !may_be_empty(text);
        let empty: Vec<_> = expressions.iter().filter(empty).collect();
        wait::holds(empty.is_empty(), empty)
    });
}
