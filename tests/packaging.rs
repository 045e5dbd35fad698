//! The image, the Debian package, the units and the release workflow agree with the program and
//! with the repository. None of them is built or started here.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use crate::examples::{has_program, python_with, repository, succeed, text};
use crate::server::Server;
use crate::support::{FREE_PORT, TestFolder, wait_until, weir};

/// Files that the program needs or gives away with its binary.
const LICENCES: [&str; 3] = ["LICENSE-MIT", "LICENSE-APACHE", "NOTICE"];

/// Checks that a command line of Weir, without the binary, has a verb and flags that exist.
fn assert_command(words: &[&str]) {
    let verb: Vec<&str> = words
        .iter()
        .copied()
        .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        .take_while(|word| !word.starts_with('-'))
        .collect();
    assert!(!verb.is_empty(), "{words:?} has no verb");
    let help = succeed(weir().args(&verb).arg("--help"));
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        let name = flag.split('=').next().unwrap_or_default();
        assert!(help.contains(name), "{verb:?} has no {name}");
    }
}

fn manifest() -> toml::Table {
    toml::from_str(&text("Cargo.toml")).expect("a manifest")
}

/// The image has nothing else, and the Debian package asks for nothing else.
#[test]
fn the_program_needs_no_library_but_those_of_c() {
    if !has_program("readelf") {
        return;
    }
    let dynamic = succeed(Command::new("readelf").args(["-d", env!("CARGO_BIN_EXE_weir")]));
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let mut names = needed.map(|line| line.split(['[', ']']).nth(1).expect("a name"));
    let allowed = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];
    let other = names.find(|name| !allowed.iter().any(|known| name.starts_with(known)));
    assert_eq!(other, None, "{dynamic}");
}

#[test]
fn what_the_debian_package_takes_exists_and_includes_the_licences() {
    let manifest = manifest();
    let deb = &manifest["package"]["metadata"]["deb"];
    let script = text(".ci/package");
    let assets = deb["assets"].as_array().expect("assets");
    let mut targets = Vec::new();
    for asset in assets {
        let [source, target, mode] = [0, 1, 2].map(|n| asset[n].as_str().expect("text"));
        targets.push(target);
        assert!(["644", "755"].contains(&mode), "{asset}");
        let made = source.strip_prefix("target/release/");
        if let Some(name) = made.and_then(|made| made.strip_prefix("package/")) {
            let name = name.trim_end_matches("/*");
            assert!(
                script.contains(&format!("\"$parts/{name}\"")),
                "{name} is not made"
            );
        } else if let Some((folder, _)) = source.split_once("/*") {
            assert!(repository().join(folder).is_dir(), "{source}");
        } else if made != Some("weir") {
            assert!(repository().join(source).is_file(), "{source} is missing");
        }
    }
    for name in LICENCES {
        assert!(
            targets.contains(&&*format!("usr/share/doc/weir/{name}")),
            "{name}"
        );
    }
    assert!(targets.contains(&"etc/weir/weir.toml"));
    let maintainer = deb["maintainer"].as_str().expect("text");
    assert!(!maintainer.contains('@'), "{maintainer}");
    let unit = &deb["systemd-units"];
    let unit = format!(
        "{}/{}.service",
        unit["unit-scripts"].as_str().expect("text"),
        unit["unit-name"].as_str().expect("text")
    );
    assert!(repository().join(&unit).is_file(), "{unit}");
}

#[test]
fn the_package_s_scripts_are_shell_scripts_with_room_for_generated_parts() {
    let manifest = manifest();
    let scripts = &manifest["package"]["metadata"]["deb"]["maintainer-scripts"];
    let folder = repository().join(scripts.as_str().expect("text"));
    for name in ["postinst", "postrm"] {
        let path = folder.join(name);
        let script = std::fs::read_to_string(&path).expect("a script");
        assert!(script.lines().any(|line| line == "#DEBHELPER#"), "{name}");
        let mode = std::fs::metadata(&path).expect("it exists").permissions();
        assert_eq!(mode.mode() & 0o111, 0o111, "{name} can be run");
        succeed(Command::new("sh").arg("-n").arg(&path));
    }
}

/// The units of systemd.
const UNITS: [&str; 2] = ["weir.service", "weir-once.service"];

/// The values of a unit's key.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    let of_key = lines.filter(|(name, _)| *name == key);
    of_key.map(|(_, value)| value).collect()
}

#[test]
fn units_start_verbs_that_exist_without_privileges() {
    for name in UNITS {
        let unit = text(&format!("docs/operations/{name}"));
        let command: Vec<&str> = values(&unit, "ExecStart")[0].split(' ').collect();
        assert_eq!(command[0], "weir", "systemd finds it in /usr/local/bin");
        assert_command(&command[1..]);
        for (key, value) in [
            ("User", "weir"),
            ("NoNewPrivileges", "true"),
            ("ProtectSystem", "strict"),
            ("ProtectHome", "true"),
            ("PrivateDevices", "true"),
            ("CapabilityBoundingSet", ""),
            ("StateDirectory", "weir"),
            ("UMask", "0077"),
        ] {
            assert_eq!(values(&unit, key), [value], "{name}: {key}");
        }
    }
    let hardening = |name: &str| {
        let unit = text(&format!("docs/operations/{name}"));
        let (_, hardening) = unit.split_once("\nUMask=").expect("a part");
        let end = hardening.find("\n[").unwrap_or(hardening.len());
        hardening[..end].trim().to_owned()
    };
    assert_eq!(hardening(UNITS[0]), hardening(UNITS[1]));
    let crontab = text("docs/operations/weir.crontab");
    let line = crontab.lines().find(|line| line.starts_with('*'));
    let (_, command) = line.and_then(|l| l.split_once("&& weir ")).expect("a line");
    let words: Vec<&str> = command.split(' ').take_while(|w| *w != ">>").collect();
    assert_command(&words);
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    if !has_program("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for name in ["weir.service", "weir-once.service", "weir-once.timer"] {
        let unit = text(&format!("docs/operations/{name}"));
        // The binary of this build, in place of an installed one.
        let binary = format!("ExecStart={} ", env!("CARGO_BIN_EXE_weir"));
        let path = folder.path().join(name);
        std::fs::write(&path, unit.replace("ExecStart=weir ", &binary)).expect("a file");
        verify.arg(path);
    }
    let output = verify.output().expect("it runs");
    let found = String::from_utf8_lossy(&output.stderr);
    // Its messages about other units of the machine name other files.
    let faults: Vec<&str> = found.lines().filter(|line| line.contains("weir")).collect();
    assert!(faults.is_empty(), "{faults:?}");
}

/// A command as a Dockerfile's line has it, in the form of an array.
fn image_command(dockerfile: &str, instruction: &str) -> Vec<String> {
    let mut lines = dockerfile
        .lines()
        .skip_while(|l| !l.starts_with(instruction));
    let array = lines
        .find_map(|line| line.find('[').map(|at| &line[at..]))
        .unwrap_or_else(|| panic!("{instruction} has an array"));
    serde_json::from_str(array).expect("an array")
}

#[test]
fn the_image_copies_what_exists_and_runs_what_exists() {
    let dockerfile = text("Dockerfile");
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut copied = Vec::new();
    for line in dockerfile.lines() {
        let line = line.trim().trim_start_matches("&& ");
        if let Some(files) = line.strip_prefix("cp ") {
            let files = words(files.trim_end_matches(" \\"));
            copied.extend(files[..files.len() - 1].to_vec());
        }
    }
    assert!(copied.len() > 4, "{copied:?}");
    for file in &copied {
        assert!(repository().join(file).is_file(), "{file}");
    }
    for name in LICENCES {
        assert!(copied.iter().any(|file| file == name), "{name}");
    }
    let toolchain: toml::Table = toml::from_str(&text("rust-toolchain.toml")).expect("a file");
    let version = toolchain["toolchain"]["channel"].as_str().expect("text");
    assert!(
        dockerfile.contains(&format!("FROM rust:{version}-")),
        "{version}"
    );
    let user = dockerfile.lines().find_map(|l| l.strip_prefix("USER "));
    assert!(
        user.is_some_and(|user| !user.starts_with('0') && user != "root"),
        "{user:?}"
    );
    for instruction in ["CMD", "HEALTHCHECK"] {
        let command = image_command(&dockerfile, instruction);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let words = words.strip_prefix(&["/usr/bin/weir"]).unwrap_or(&words);
        assert_command(words);
        assert!(words.contains(&"/etc/weir/weir.toml"), "{words:?}");
    }
    // What the build reads is not left out of it.
    let ignored = text(".dockerignore");
    let ignored: Vec<&str> = ignored.lines().map(|l| l.trim_matches('/')).collect();
    for needed in [
        "src",
        "docs",
        "Cargo.lock",
        "examples",
        "benches",
        "build.rs",
    ] {
        assert!(!ignored.contains(&needed), "{needed}");
    }
}

/// A folder with a certificate, a key and a token file under the names of the image's secrets, and
/// the image's configuration, which has them there.
fn image_folder() -> TestFolder {
    let folder = TestFolder::new("");
    let certificate =
        rcgen::generate_simple_self_signed(["weir.example".to_owned()]).expect("a certificate");
    folder.write("weir-cert.pem", certificate.cert.pem().as_bytes());
    let key = certificate.signing_key.serialize_pem();
    folder.write("weir-key.pem", key.as_bytes());
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.path("weir-key.pem"), private).expect("permitted");
    let token = ["token", "create", "--file"];
    succeed(weir().args(token).arg(folder.path("weir.tokens")));
    let config = text("docs/operations/container.toml");
    let secrets = folder.path("");
    let config = config
        .replace("/run/secrets/", &format!("{}/", secrets.display()))
        .replace("/var/lib/weir", &folder.path("data").display().to_string());
    folder.write("weir.toml", config.as_bytes());
    folder
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_image_s_configuration_is_valid_and_its_health_check_needs_no_token() {
    let folder = image_folder();
    folder.succeed(&["check"]);
    let health = image_command(&text("Dockerfile"), "HEALTHCHECK");
    let config = folder.path("weir.toml");
    let is_healthy = || {
        let arguments = health[1..].iter().map(|word| match word.as_str() {
            "/etc/weir/weir.toml" => config.display().to_string(),
            word => word.to_owned(),
        });
        let mut command = weir();
        command.args(arguments).env_remove("WEIR_TOKEN");
        command.output().expect("it runs").status.success()
    };
    assert!(!is_healthy(), "no server runs");
    let mut command = folder.command(&["run"]);
    // A test listens on loopback alone.
    command.env("WEIR_SERVER_HTTP", "127.0.0.1:0");
    command.stderr(Stdio::null());
    let server = Running(command.spawn().expect("the binary runs"));
    wait_until("the server is healthy", is_healthy);
    assert!(
        !folder.output(&["status"]).status.success(),
        "other verbs need a token"
    );
    drop(server);
    assert!(!is_healthy(), "the server was killed");
}

#[test]
fn the_package_s_configuration_is_valid_and_takes_events() {
    let folder = TestFolder::new("");
    let config = text("docs/operations/debian/weir.toml");
    assert!(config.contains("data = \"/var/lib/weir/data\""));
    let address = FREE_PORT.lines().last().expect("an address");
    let local = config
        .replace("/var/lib/weir/data", "data")
        .replace("http = \"127.0.0.1:8080\"", address);
    folder.write("weir.toml", local.as_bytes());
    folder.succeed(&["check"]);
    let server = Server::start(&mut folder.command(&["run"]), &folder.path("data"));
    let event = br#"{"event_type": "started", "ts": 1767600000, "params": {"by": "test"}}"#;
    let (status, answer) = server.request("POST", "/api/v1/streams/events/events", &[], event);
    assert_eq!((status, &answer["accepted"]), (200, &1.into()), "{answer}");
    server.stop();
}

#[test]
fn the_workflow_uses_the_pinned_toolchain_and_scripts_that_exist() {
    let workflow = text(".github/workflows/release.yml");
    let toolchain: toml::Table = toml::from_str(&text("rust-toolchain.toml")).expect("a file");
    let version = toolchain["toolchain"]["channel"].as_str().expect("text");
    assert!(workflow.contains(&format!("container: rust:{version}-")));
    assert!(workflow.contains(&format!("RUSTUP_TOOLCHAIN: \"{version}\"")));
    assert!(workflow.contains(".ci/package dist"));
    let script = repository().join(".ci/package");
    let mode = std::fs::metadata(&script).expect("it exists").permissions();
    assert_eq!(mode.mode() & 0o111, 0o111);
    succeed(Command::new("bash").arg("-n").arg(&script));
    // The step that compares tag and version finds the line in the manifest.
    let line = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(text("Cargo.toml").lines().any(|l| l == line), "{line}");
    let page = text("docs/install.md");
    let package = format!("weir_{}-1_amd64.deb", env!("CARGO_PKG_VERSION"));
    assert!(page.contains(&package), "docs/install.md names {package}");
    if let Some(python) = python_with("yaml") {
        let parse = "import sys, yaml; d = yaml.safe_load(open(sys.argv[1])); print(*d['jobs'])";
        let path = repository().join(".github/workflows/release.yml");
        let jobs = succeed(Command::new(python).args(["-c", parse]).arg(path));
        assert_eq!(jobs.trim(), "binaries image publish");
    }
}

#[test]
fn the_page_about_installing_names_files_and_verbs_that_exist() {
    let page = text("docs/install.md");
    let links = page.split("](").skip(1);
    for link in links.filter_map(|rest| rest.split_once(')')) {
        let path = link.0.split('#').next().unwrap_or_default();
        let is_file = !path.starts_with("https:") && !path.is_empty();
        let exists = repository().join("docs").join(path).exists();
        assert!(!is_file || exists, "{path}");
    }
    let mut commands = 0;
    for line in page.lines().filter(|line| line.starts_with("weir ")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let words: Vec<&str> = words.into_iter().take_while(|w| *w != ">").collect();
        if words[0] != "--version" {
            assert_command(&words[..1]);
        }
        commands += 1;
    }
    assert!(commands >= 3, "{commands} commands");
}
