//! The dashboards and the alert rules in `dashboards/`, evaluated by a real Prometheus that scrapes
//! two nodes while guests move between them, and while memory is taken from them.

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

/// What Grafana puts in the place of its variables.
const VARIABLES: [(&str, &str); 5] = [
    ("$cluster", ".*"),
    ("$instance", ".*"),
    ("$guest", ".*"),
    ("$__rate_interval", "1m"),
    ("$__range", "5m"),
];

/// A Prometheus that scrapes some nodes each second; it ends with the test.
struct Prometheus {
    process: Child,
    log: PathBuf,
    address: String,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts one for the nodes of `hosts`, with the alert rules.
    fn start(hosts: &[&Host]) -> Self {
        let targets: Vec<_> = hosts.iter().map(|host| metrics_address(host)).collect();
        Self::scraping(&format!(
            "{{ job_name: lighter, static_configs: [{{ targets: {targets:?} }}] }}"
        ))
    }

    /// Starts one with these jobs, in YAML.
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

    /// The address that it says it listens at, once it answers there.
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

    /// What it answers.
    fn get(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(&self.address).expect("Prometheus listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("Prometheus hears");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("Prometheus answers");
        let (_, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        serde_json::from_str(body).expect("JSON")
    }

    /// How many series an expression gives.
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

/// The expressions of a dashboard's panels, as Grafana would ask them.
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

/// Slower than the guest writes, and fast enough that its first round is over soon.
const SLOWLY: [&str; 2] = ["--bandwidth", "2MB/s"];

/// Has everything happen that the dashboard shows: a guest that moves, one that is refused, one
/// that is called off, and one that is on its way when this returns.
fn busy(pair: &Pair, prometheus: &Prometheus) -> Migration {
    // A counter that moves before the first scrape has not moved for Prometheus.
    wait::until("both nodes are scraped", || {
        let up = prometheus.series("up{job=\"lighter\"} == 1");
        wait::holds(up == 2, up)
    });
    // What a guest measures of its last migration is told where it stays.
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
    // The destination refuses it while its process from before is ending.
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
    // The workload has no network, no disks and no balloon: those give no series, and no error.
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
    // How long a guest stood is a matter of the machine.
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

/// Whether an expression gives no series where all is well, or on a guest whose kernel is older
/// than Linux 6.12 and counts no events of its memory.
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
