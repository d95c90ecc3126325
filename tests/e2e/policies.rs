//! The policies in `policies/`: what each is for works, and what it is against does not. And every mistake that a policy can
//! have is explained.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use crate::harness::{CALLGATE, Fixture, Outcome, eventually, finish, records_among, repository, run};

fn under(policy: &str) -> Command {
    let mut command = Command::new(CALLGATE);
    command.arg("--policy").arg(repository("policies").join(policy));
    command
}

/// The kinds of event that were denied, or would have been.
fn denied(outcome: &Outcome) -> Vec<String> {
    let records = records_among(&outcome.stderr).into_iter().filter(|record| record["verdict"] == "deny");
    records.map(|record| record["event"].as_str().unwrap().to_owned()).collect()
}

/// A port that the policies for servers allow, and that is free.
fn port(mut among: std::ops::Range<u16>) -> u16 {
    among.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// What a server answers to a request for `/`, once it is up.
fn fetch(port: u16) -> String {
    eventually("the server answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn terminate(child: Child) -> Outcome {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    finish(child)
}

#[test]
fn the_web_shell_lists_and_does_not_say_who_it_is() {
    let fixture = Fixture::allowing(&[]);
    let gotty = fixture.path("gotty");
    fs::write(&gotty, "#!/bin/bash\n\"$2\" -c 'ls /; which cat; whoami; echo $?'\n").unwrap();
    fs::set_permissions(&gotty, fs::Permissions::from_mode(0o755)).unwrap();
    let policy = fs::read_to_string(repository("policies/web-shell.json")).unwrap();
    fs::write(fixture.policy(), policy.replace("/go/bin/gotty", gotty.to_str().unwrap())).unwrap();
    let outcome = run(fixture.callgate().arg(&gotty).args(["-w", "/bin/bash"]));
    assert!(outcome.stdout.contains("etc\n") && outcome.stdout.ends_with("/cat\n126\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("whoami: Permission denied"), "{outcome:?}");
    assert_eq!(denied(&outcome), ["exec"]);
}

#[test]
fn every_program_that_a_policy_lists_here_runs_here() {
    for policy in ["web-shell.json", "static-web-server.json", "python-web-app.json", "locked.json", "build.json"] {
        let outcome = run(Command::new(CALLGATE).arg("check").arg("--policy").arg(repository("policies").join(policy)));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        assert!(!outcome.stdout.contains("does not run"), "{outcome:?}");
    }
}

#[test]
fn the_short_form_of_other_products_works_as_it_is() {
    let fixture = Fixture::allowing(&[]);
    let exported = r#"{"allow_executables":["/go/bin/gotty","/bin/bash","/bin/ls","/bin/cat","/usr/bin/which"]}"#;
    fs::write(fixture.policy(), exported).unwrap();
    let outcome = fixture.bash("ls / >/dev/null && echo listed; cat /dev/null && echo read; whoami; echo $?");
    assert_eq!(outcome.stdout, "listed\nread\n126\n", "{outcome:?}");
    // Here it is a script of /bin/sh, which that list does not have.
    let said = run(fixture.callgate().arg("check")).stdout;
    let warning = "policy.json:1:72: /usr/bin/which does not run: /usr/bin/dash, which interprets it, is not in allow_executables";
    assert!(said.contains(warning), "{said}");
}

#[test]
fn a_name_with_special_characters_is_that_name() {
    let fixture = Fixture::new(serde_json::json!({ "deny_executables": ["/usr/bin/["] }));
    let outcome = fixture.bash("/usr/bin/[ 1 = 1 ]; echo $?");
    assert_eq!(outcome.stdout, "126\n", "{outcome:?}");

    let fixture = Fixture::allowing(&["/bin/bash"]);
    let at = fixture.path("").display().to_string();
    for name in ["a[x]", "b{1}", "c?", "d\\", "a*", "ax", "b1", "cc"] {
        fs::copy("/bin/true", fixture.path(name)).unwrap();
    }
    let entries = format!(r#""{at}a[x]", "{at}b{{1}}", "{at}c?", "{at}d\\""#);
    fs::write(
        fixture.policy(),
        format!(r#"{{"allow_executables": ["/bin/bash", {entries}], "audit": {{"sinks": ["file:{at}records"]}}}}"#),
    )
    .unwrap();
    let outcome = fixture.bash(&format!(
        r#"cd {at}; for program in 'a[x]' 'b{{1}}' 'c?' 'd\' 'a*' ax b1 cc; do "./$program"; echo "$program" $?; done"#
    ));
    assert_eq!(outcome.stdout, "a[x] 0\nb{1} 0\nc? 0\nd\\ 0\na* 126\nax 126\nb1 126\ncc 126\n", "{outcome:?}");
    // What is proposed for a name that would be a glob is its content.
    let hint = fixture.records()[0]["hint"].as_str().unwrap().to_owned();
    assert!(hint.starts_with("add \"sha256:"), "{hint}");
}

#[test]
fn the_static_web_server_serves_on_its_ports_and_runs_nothing_else() {
    let fixture = Fixture::allowing(&[]);
    fs::create_dir(fixture.path("www")).unwrap();
    fs::write(fixture.path("www/index.html"), "hello from nginx").unwrap();
    let configuration = |port: u16| {
        let at = fixture.path("").display().to_string();
        let text = format!(
            "daemon off; user www-data; pid {at}/pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; \
             uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; server {{ listen 127.0.0.1:{port}; root {at}/www; }} }}\n"
        );
        fs::write(fixture.path("nginx.conf"), text).unwrap();
        let mut nginx = under("static-web-server.json");
        nginx.args(["/usr/sbin/nginx", "-e", "stderr", "-c"]).arg(fixture.path("nginx.conf"));
        nginx
    };
    let port = port(8000..8500);
    let server = start(&mut configuration(port));
    assert!(fetch(port).ends_with("hello from nginx"));
    let outcome = terminate(server);
    assert_eq!((outcome.code(), denied(&outcome)), (0, vec![]), "{outcome:?}");

    let outcome = run(&mut configuration(9123));
    assert!(outcome.stderr.contains("bind() to 127.0.0.1:9123 failed (1: Operation not permitted)"), "{outcome:?}");
    assert_eq!(run(under("static-web-server.json").args(["/bin/sh", "-c", "true"])).code(), 126);
}

#[test]
fn the_python_web_app_serves_and_gets_neither_a_shell_nor_out() {
    let port = port(8500..9000);
    let server = start(under("python-web-app.json").args([
        "/usr/bin/python3",
        "-c",
        &format!(
            "import http.server, signal, sys\n\
             signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n\
             http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
        ),
    ]));
    assert!(fetch(port).starts_with("HTTP/1.0 200 OK"));
    let outcome = terminate(server);
    assert_eq!((outcome.code(), denied(&outcome)), (0, vec![]), "{outcome:?}");

    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let outcome = run(under("python-web-app.json").args([
        "/usr/bin/python3",
        "-c",
        &format!(
            "import os, socket\nprint(os.system('id') >> 8)\n\
             try: socket.create_connection(('127.0.0.1', {}))\nexcept PermissionError as e: print(e)",
            elsewhere.local_addr().unwrap().port()
        ),
    ]));
    assert_eq!(outcome.stdout, "127\n[Errno 1] Operation not permitted\n", "{outcome:?}");
    assert_eq!(denied(&outcome), ["exec", "connect"]);
}

#[test]
fn the_batch_job_computes_and_does_not_phone_home() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!(
        "seq 3 | sort -r | tr '\\n' ' '; : </dev/tcp/{}",
        listener.local_addr().unwrap().to_string().replace(':', "/")
    );
    let outcome = run(under("batch-without-network.json").args(["/bin/bash", "-c", &line]));
    assert_eq!(outcome.stdout, "3 2 1 ");
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    assert_eq!(denied(&outcome), ["connect"]);
}

#[test]
fn the_build_clones_compiles_and_does_not_run_what_it_made() {
    let fixture = Fixture::allowing(&[]);
    let at = fixture.path("").display().to_string();
    let script = format!(
        "set -e; cd {at}; git init -q origin; cd origin; git config user.email a@b; git config user.name a\n\
         printf 'int main(void) {{ return 0; }}\\n' > a.c; printf 'a: a.c\\n\\tgcc -o a a.c\\n' > Makefile\n\
         git add .; git commit -qm first; cd ..; git clone -q origin copy; make -sC copy; test -x copy/a; echo built\n\
         ./copy/a || echo $?; nc -h || echo $?"
    );
    let outcome = run(under("build.json").args(["/bin/bash", "-c", &script]));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    assert!(outcome.stdout.starts_with("built\n126\n"), "{outcome:?}");
    assert!(denied(&outcome).iter().all(|kind| kind == "exec"), "{outcome:?}");
}

#[test]
fn learning_blocks_nothing_and_records_everything() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let line = format!(
        "ls / >/dev/null && : </dev/tcp/{} && setpriv --reuid 1000 --clear-groups id -u",
        listener.local_addr().unwrap().to_string().replace(':', "/")
    );
    let outcome = run(under("learn.json").args(["/bin/bash", "-c", &line]));
    assert_eq!((outcome.code(), outcome.stdout.as_str()), (0, "1000\n"), "{outcome:?}");
    let denied = denied(&outcome);
    for kind in ["exec", "connect", "credentials"] {
        assert!(denied.iter().any(|denied| denied == kind), "{kind}: {outcome:?}");
    }
    assert!(records_among(&outcome.stderr).iter().all(|record| record["outcome"] != "denied"), "{outcome:?}");
}

#[test]
fn the_locked_policy_is_not_loosened() {
    for (variable, flag) in [("dry-run", None), ("", Some("--dry-run"))] {
        let mut command = under("locked.json");
        command.env("CALLGATE_MODE", variable).args(flag).args([
            "/bin/sh",
            "-c",
            "ls / >/dev/null && echo listed; id; echo $?",
        ]);
        let outcome = run(&mut command);
        assert_eq!(outcome.stdout, "listed\n126\n", "{outcome:?}");
        assert!(outcome.stderr.contains("the policy locks it"), "{outcome:?}");
        assert!(denied(&outcome).iter().all(|kind| kind == "exec"), "{outcome:?}");
        assert!(records_among(&outcome.stderr).iter().any(|record| record["outcome"] == "allowed"), "{outcome:?}");
    }
}

#[test]
fn egress_goes_to_the_listed_networks_only() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "import socket\n\
         socket.create_connection(('127.0.0.1', {})); print('reached')\n\
         for to in ('192.0.2.1', 443), ('10.0.0.1', 25):\n\
         \x20try: socket.create_connection(to)\n\
         \x20except PermissionError as e: print(e)",
        listener.local_addr().unwrap().port()
    );
    let outcome = run(under("egress.json").args(["python3", "-c", &script]));
    assert_eq!(
        outcome.stdout, "reached\n[Errno 1] Operation not permitted\n[Errno 1] Operation not permitted\n",
        "{outcome:?}"
    );
    assert_eq!(denied(&outcome), ["connect", "connect"]);
}

#[test]
fn processes_become_only_the_listed_users() {
    let line = |uid: u32, gid: u32| format!("setpriv --reuid {uid} --regid {gid} --clear-groups id -u");
    let outcome = run(under("users.json").args(["/bin/bash", "-c", &line(1000, 1999)]));
    assert_eq!((outcome.stdout.as_str(), denied(&outcome)), ("1000\n", vec![]), "{outcome:?}");
    for (uid, gid) in [(33, 1000), (1000, 33)] {
        let outcome = run(under("users.json").args(["/bin/bash", "-c", &line(uid, gid)]));
        assert!(outcome.code() != 0 && outcome.stdout.is_empty(), "{outcome:?}");
        assert_eq!(denied(&outcome), ["credentials"]);
    }
}

#[test]
fn every_policy_is_explained_by_the_readme() {
    let readme = fs::read_to_string(repository("policies/README.md")).unwrap();
    for entry in fs::read_dir(repository("policies")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(readme.contains(&name), "{name} is not in policies/README.md");
    }
}

/// What is said about a policy, after it was seen that nothing was started.
fn refusal(fixture: &Fixture) -> String {
    let outcome = run(fixture.callgate().args(["/bin/touch"]).arg(fixture.path("started")));
    assert_eq!(outcome.code(), 125, "{outcome:?}");
    assert!(!fixture.path("started").exists());
    outcome.stderr
}

#[test]
fn every_mistake_is_explained_with_its_place_before_anything_is_started() {
    let deep = "[".repeat(100) + &"]".repeat(100);
    let deeper = "[".repeat(100_000) + &"]".repeat(100_000);
    let long = format!("{{\"allow_executables\": [{}\"x\"]}}", "\"/bin/ls\", ".repeat(100_000));
    for (policy, place, part, hint) in [
        (
            r#"{"alow_executables": []}"#,
            "1:2",
            "there is no key \"alow_executables\" here",
            r#"did you mean "allow_executables"?"#,
        ),
        (
            r#"{"allow_executables": "/bin/ls"}"#,
            "1:23",
            "a list is expected here, not the text",
            "put [ and ] around it",
        ),
        (r#"{"allow_executables": ["/a", 5]}"#, "1:30", "a text is expected here, not 5", ""),
        (r#"{"allow_executables": null}"#, "1:23", "is expected here, not null", ""),
        (
            r#"{"allow_executables": [], "mode": "dryrun"}"#,
            "1:35",
            "\"dryrun\" is not one of the words \"enforce\", \"dry-run\"",
            r#"did you mean "dry-run"?"#,
        ),
        (
            "{\n  \"network\": {\"outbound\": [\n    {\"to\": [\"10.0.0.0/8\", \"10.0.0.0/33\"]}]}}",
            "3:27",
            "neither an address nor",
            "192.0.2.0/24",
        ),
        (r#"{"network": {"outbound": [{"to": "10.0.0/8"}]}}"#, "1:34", "neither an address nor", "192.0.2.0/24"),
        (r#"{"network": {"inbound": [{"from": "x"}]}}"#, "1:35", "neither an address nor", ""),
        (r#"{"network": {"outbound": [{"ports": ["90-80"]}]}}"#, "1:38", "a range such as \"8000-8100\"", ""),
        (r#"{"network": {"outbound": [{"ports": 65536}]}}"#, "1:37", "a number from 0 to 65535", ""),
        (r#"{"network": {"outbound": [{"port": 1}]}}"#, "1:28", "there is no key \"port\"", r#"did you mean "ports"?"#),
        (r#"{"network": {"outbound": [[]]}}"#, "1:27", "an object is expected here, not a list", ""),
        (r#"{"network": {"families": ["netlnk"]}}"#, "1:27", "no family that is known", "netlink"),
        (
            r#"{"network": {"outbound": [{"protocol": "tcpp"}]}}"#,
            "1:40",
            "\"tcpp\" is not one of the words \"tcp\", \"udp\"",
            r#"did you mean "tcp"?"#,
        ),
        (r#"{"users": {"uids": ["0-x"]}}"#, "1:21", "a range such as \"1000-1999\"", ""),
        (r#"{"users": {"uids": [1], "uids": [2]}}"#, "1:25", "the key \"uids\" is there twice", "remove one of them"),
        (
            r#"{"plugins": [{"name": "allowlist", "config": {"users": {"uid": [1]}}}]}"#,
            "1:57",
            "there is no key \"uid\"",
            r#"did you mean "uids"?"#,
        ),
        (
            r#"{"plugins": [{"name": "allowlist", "config": {"network": {"outbound": [{"to": ["::/129"]}]}}}]}"#,
            "1:80",
            "::/129",
            "2001:db8::/32",
        ),
        (r#"{"plugins": [{"name": "allowlist", "config": []}]}"#, "1:46", "an object is expected here, not a list", ""),
        (r#"{"plugins": [{"name": "allowlist", "config": {}}]}"#, "1:46", "governs nothing", "allow_executables"),
        (r#"{"plugins": [{"name": "allowlist"}]}"#, "1:14", "governs nothing", "allow_executables"),
        (
            r#"{"plugins": [{"name": "m", "path": "nosuch.wasm"}]}"#,
            "1:36",
            "No such file",
            "relative to the directory of the policy",
        ),
        (r#"{"plugins": [{"name": "m", "path": "."}]}"#, "1:36", "not a regular file", ""),
        (
            r#"{"plugins": [{"name": "m", "path": "policy.json"}]}"#,
            "1:36",
            "not webassembly",
            "callgatectl plugin build",
        ),
        (r#"{"plugins": [{"name": "m", "path": "core.wasm"}]}"#, "1:36", "a core module, not a component", ""),
        (
            r#"{"plugins": [{"name": "m", "path": "component.wasm"}]}"#,
            "1:36",
            "is no plugin of callgate:policy@0.1",
            "",
        ),
        (r#"{"plugins": [{"name": "m", "path": "wasi.wasm"}]}"#, "1:36", "imports wasi:cli/environment@0.2.0", ""),
        (
            r#"{"plugins": [{"name": "m", "path": "component.wasm", "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}]}"#,
            "1:64",
            "has the sha256",
            "if this is the plugin you mean, write",
        ),
        (
            r#"{"plugins": [{"name": "allowlist", "memory_mib": 1, "config": {"users": {}}}]}"#,
            "1:50",
            "does not start",
            "is the least that will do",
        ),
        (r#"{"\u0061llow_executables": 5}"#, "1:28", "is expected here, not 5", ""),
        (r#"{"a/b~c": 5}"#, "1:2", "there is no key \"a/b~c\"", ""),
        ("\u{feff}{}", "1:1", "byte order mark", "UTF-8 without"),
        (&deep, "1:1", "an object is expected here, not a list", ""),
        (&deeper, "1:128", "too many lists and objects lie in each other", ""),
        (&long, "1:1100024", "neither an absolute path", ""),
        (r#"{"allow_executables": ["/bin/ls"],}"#, "1:35", "a trailing comma", "remove the comma"),
        (r#"{"allow_executables": ["bin/ls"]}"#, "1:24", "neither an absolute path", r#"did you mean "/bin/ls"?"#),
        (r#"{"allow_executables": ["true"]}"#, "1:24", "neither an absolute path", r#"did you mean "/usr/bin/true"?"#),
        (r#"{"allow_executables": ["/bin/l\u0000s"]}"#, "1:24", "has a NUL", ""),
        (r#"{"allow_executables": ["/opt/*/"]}"#, "1:24", "no file's path ends with a slash", "/opt/*/**"),
        (r#"{"network": {"outbound": [{"unix": "/a\u0000"}]}}"#, "1:36", "has a NUL", ""),
        (r#"{"plugins": [{"name": "m", "path": "a\u0000"}]}"#, "1:36", "has a NUL", ""),
        (
            r#"{"network": {"outbound": [{"protocol": 6}]}}"#,
            "1:40",
            "\"udplite\", \"sctp\", \"icmp\" is expected here, not 6",
            "",
        ),
        (r#"{"network": {"outbound": [{"protocol": ["tcp"]}]}}"#, "1:40", "\"icmp\" is expected here, not a list", ""),
        (
            r#"{"mode": null, "allow_executables": []}"#,
            "1:10",
            "\"enforce\", \"dry-run\" is expected here, not null",
            "",
        ),
        (
            r#"{"network": {"outbound": [{"to": "127.0.0.1/0"}]}}"#,
            "1:34",
            "127.0.0.1/0",
            "did you mean 127.0.0.1/32 or 0.0.0.0/0?",
        ),
        (
            r#"{"version": "1", "allow_executables": []}"#,
            "1:13",
            "a number from 0 to 4294967295 is expected here",
            "write 1 without double quotes",
        ),
        ("{\n  // what may run\n  \"allow_executables\": []}", "2:3", "a key in double quotes", "JSON has no comments"),
        ("{'allow_executables': []}", "1:2", "a key in double quotes", "straight double quotes"),
        ("allow_executables:\n  - /bin/ls\n", "1:1", "a value is expected", "this is no JSON"),
        ("{\"allow_executables\": [\n\"/bin/ls\"", "2:9", "the text ends within a list", ""),
    ] {
        let fixture = Fixture::allowing(&[]);
        fs::write(fixture.policy(), policy).unwrap();
        fs::write(fixture.path("core.wasm"), b"\0asm\x01\0\0\0").unwrap();
        fs::write(fixture.path("component.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
        let wasi = r#"(component (import "wasi:cli/environment@0.2.0" (instance)))"#;
        fs::write(fixture.path("wasi.wasm"), wat::parse_str(wasi).unwrap()).unwrap();
        let shown: String = policy.chars().take(100).collect();
        let said = refusal(&fixture);
        assert!(said.contains(&format!("policy.json:{place}\n")), "{shown}: {said}");
        assert!(said.contains(part), "{shown}: {said}");
        assert!(said.lines().any(|line| line.contains('^')), "{shown}: {said}");
        assert!(
            hint.is_empty() || said.lines().any(|line| line.contains("help: ") && line.contains(hint)),
            "{shown}: {said}"
        );
        assert!(said.len() < 2000, "{shown}: {} bytes", said.len());
    }
}

#[test]
fn a_policy_that_cannot_be_read_is_named() {
    let fixture = Fixture::allowing(&[]);
    let write = |bytes: &[u8]| fs::write(fixture.policy(), bytes).unwrap();
    write(b"");
    let said = refusal(&fixture);
    assert!(said.contains("policy.json: the policy is empty\nhelp: the shortest policy is {"), "{said}");
    write(b"{\"allow_executables\": [\"/bin/\xff\"]}");
    let said = refusal(&fixture);
    assert!(said.contains("policy.json:1:30\n") && said.contains("not UTF-8"), "{said}");
    write(&[0xff, 0xfe, b'{', 0, b'}', 0]);
    assert!(refusal(&fixture).contains("not UTF-8"));
    fs::File::options().write(true).open(fixture.policy()).unwrap().set_len(65 << 20).unwrap();
    assert!(refusal(&fixture).contains("policy.json: cannot read the policy: it is larger than 64 MiB"));
    write(b"{\"allow_executables\": []}");
    fs::set_permissions(fixture.policy(), fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-dac_override,-dac_read_search", CALLGATE, "--policy"]).arg(fixture.policy());
    let outcome = run(command.arg("/bin/true"));
    assert_eq!(outcome.code(), 125, "{outcome:?}");
    assert!(outcome.stderr.contains("policy.json: cannot read the policy: Permission denied"), "{outcome:?}");
    fs::remove_file(fixture.policy()).unwrap();
    assert!(refusal(&fixture).contains("help: name the policy with --policy"));
    nix::unistd::mkfifo(&fixture.policy(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(refusal(&fixture).contains("it is not a regular file"));
    fs::remove_file(fixture.policy()).unwrap();
    fs::create_dir(fixture.policy()).unwrap();
    assert!(refusal(&fixture).contains("it is a directory"));
}

#[test]
fn a_check_says_what_a_policy_means_and_what_may_surprise() {
    let fixture = Fixture::allowing(&[]);
    let at = fixture.path("").display().to_string();
    fs::write(fixture.path("open"), "").unwrap();
    fs::set_permissions(fixture.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink("/usr/bin/bash", fixture.path("link")).unwrap();
    let policy = format!(
        "{{\"mode\": \"dry-run\", \"allow_executables\": [\n\
         \"{at}/nosuch\",\n\"/usr/bin\",\n\"{at}/link\",\n\"{at}/open\",\n\"/etc/passwd\",\n\"/usr/bin/python3\",\n\
         \"/lib64/ld-linux-x86-64.so.2\", \"/usr/sbin/\", \"/opt/*/x\"]}}"
    );
    fs::write(fixture.policy(), policy).unwrap();
    let outcome = run(fixture.callgate().arg("check"));
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    for line in [
        "policy.json: valid\n",
        "mode: dry-run",
        "where every plugin abstains: deny",
        "records: denials, to stderr",
        &format!("plugin allowlist: allowlist {} (built in)", env!("CARGO_PKG_VERSION")),
        "decides on: exec, exec-fileless\n",
        "takes: allow_executables, deny_executables, network, users\n",
        "if it fails: deny; deadline 1000 ms, memory 16 MiB",
        "allows the executables of 9 entries and no others",
        "not governed: connect, bind, listen, accept, send, socket, credentials",
        "policy.json:1:10: in a dry run nothing is blocked",
        "policy.json:2:1: there is no",
        "policy.json:3:1: /usr/bin is a directory, so this allows nothing",
        "link leads to /usr/bin/bash",
        "policy.json:4:1: ",
        "link is a shell",
        "policy.json:5:1: everybody can write",
        "policy.json:6:1: /etc/passwd is not executable",
        "policy.json:7:1: /usr/bin/python3 is an interpreter",
        "policy.json:8:1: /lib64/ld-linux-x86-64.so.2 is a dynamic loader",
    ] {
        assert!(outcome.stdout.contains(line), "{line}: {}", outcome.stdout);
    }
    fs::write(fixture.policy(), r#"{"deny_executables": ["/usr/bin/nosuch"], "default": "allow"}"#).unwrap();
    let said = run(fixture.callgate().arg("check")).stdout;
    for line in ["what no plugin denies is allowed", "a copy of a denied file", "there is no /usr/bin/nosuch yet"] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn a_check_says_who_may_be_what_and_reach_what() {
    let fixture = Fixture::allowing(&[]);
    let check = |policy: &str| {
        fs::write(fixture.policy(), policy).unwrap();
        let outcome = run(fixture.callgate().arg("check"));
        assert_eq!(outcome.code(), 0, "{outcome:?}");
        outcome.stdout
    };
    let said = check(r#"{"users": {}}"#);
    assert!(said.contains("  users: any; groups: any\n"), "{said}");
    assert!(said.contains("policy.json:1:11: this governs nothing"), "{said}");
    let said = check(r#"{"users": {"uids": [0, "1000-1999"]}, "allow_executables": ["/usr/*/nosuch-program"]}"#);
    assert!(said.contains("  users: 0 or 1000-1999; groups: any\n"), "{said}");
    assert!(!said.contains("governs nothing"), "{said}");
    assert!(said.contains("policy.json:1:61: /usr/*/nosuch-program matches nothing"), "{said}");

    let said = check(
        r#"{"audit": {"sinks": []}, "network": {"families": ["vsock"], "dissolve": false, "outbound": [
{"to": ["10.0.0.0/8", "::1"], "ports": [53, "8000-8100"], "protocol": "udp"}, {"unix": "/run/*.sock"},
{"to": []}, {"ports": []},
{"protocol": "icmp", "ports": 7}], "inbound": [{"ports": 80, "from": "192.0.2.1"}]}}"#,
    );
    for line in [
        "  reaches: 10.0.0.0/8 or ::1, port 53 or 8000-8100, udp\n",
        "  reaches: AF_UNIX, /run/*.sock\n",
        "  reaches: none, any port, tcp and udp\n",
        "  serves: any address, port 80, tcp, from 192.0.2.1\n",
        "  other families: vsock\n",
        "AF_UNIX names of the kernel's choice, binding port 0\n",
        "policy.json:1:21: nothing is recorded anywhere",
        "policy.json:3:8: an empty list matches nothing",
        "policy.json:3:23: an empty list matches nothing",
        "policy.json:4:31: icmp has no ports",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn the_memory_that_a_mistake_proposes_is_enough() {
    let fixture = Fixture::allowing(&[]);
    let policy = |mib: u32| {
        let plugin = serde_json::json!({ "name": "allowlist", "memory_mib": mib, "config": { "users": {} } });
        fs::write(fixture.policy(), serde_json::json!({ "plugins": [plugin] }).to_string()).unwrap();
        run(fixture.callgate().arg("check"))
    };
    let said = policy(1).stderr;
    let least = said.split("\"memory_mib\": ").last().and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    assert_eq!(policy(least).code(), 0, "{said}");
    assert_eq!(policy(least - 1).code(), 125, "{said}");
}
