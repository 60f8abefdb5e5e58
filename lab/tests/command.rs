//! The command's contract: exit status, errors with their place, JSON that programs can rely on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use snapbox::cmd::cargo_bin;
use snapbox::{assert_data_eq, str};

fn lazytlb(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Command::new(cargo_bin!("lazytlb")).args(arguments).current_dir(root).env("NO_COLOR", "1").output().unwrap()
}

/// Runs it with `--json`; says whether all was as expected.
fn json(arguments: &[&str]) -> (bool, Value) {
    let output = lazytlb(&[arguments, &["--json"]].concat());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let status = output.status.code().unwrap();
    assert!(status <= 1, "status {status}");
    (status == 0, serde_json::from_slice(&output.stdout).unwrap())
}

/// Runs it on bad input: status 2, nothing on standard output, and the error.
fn refused(arguments: &[&str]) -> String {
    let output = lazytlb(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "nothing half-written");
    String::from_utf8(output.stderr).unwrap()
}

fn scratch(name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(name);
    fs::write(&path, contents).unwrap();
    path
}

/// The keys of an object, so that none can go missing unnoticed.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn litmus_prints_an_array_of_runs() {
    let (good, runs) = json(&["litmus", "b01-x86", "exit-alone"]);
    assert!(good);
    let runs = runs.as_array().unwrap();
    for run in runs {
        assert_eq!(
            keys(run),
            [
                "claimed",
                "complete",
                "depth",
                "executions",
                "expected",
                "kinds",
                "machine",
                "memory",
                "schedule",
                "seconds",
                "stand_for",
                "states",
                "strategy",
                "test",
                "verdict"
            ]
        );
        assert_eq!((&run["complete"], &run["expected"]), (&Value::Bool(true), &Value::Bool(true)));
        assert_eq!(run["verdict"] == "bug", run["schedule"].is_string());
    }
    let bug = runs.iter().find(|run| run["strategy"] == "unprotected" && run["memory"] == "tso").unwrap();
    assert_eq!((&bug["verdict"], &bug["claimed"]), (&"bug".into(), &Value::Bool(false)));
    assert_eq!(bug["kinds"], serde_json::json!(["holds", "dereferences"]));

    // What was found can be kept in a file and seen again.
    let file = scratch("b01.schedule", bug["schedule"].as_str().unwrap());
    let replay = |test: &str, file: &Path| {
        let setting = ["--strategy", "unprotected", "--memory", "tso", "--machine", "ipi-flush", "--replay"];
        lazytlb(&[&["litmus", test], &setting[..], &[file.to_str().unwrap()]].concat())
    };
    let output = replay("b01-x86", &file);
    assert_eq!(output.status.code(), Some(1), "a bug is shown");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("BUG: KASAN: slab-use-after-free in context_switch"), "{report}");
    // The schedule of another test is refused.
    let output = replay("b01-x86-unchecked", &file);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the schedule is for another program"));
}

#[test]
fn a_failing_expectation_is_status_1() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus/b01-x86.litmus")).unwrap();
    let wrong = text.replace("holds dereferences", "leak");
    let file = scratch("wrong.litmus", wrong);
    let (good, runs) = json(&["litmus", file.to_str().unwrap(), "--strategy", "unprotected"]);
    assert!(!good);
    assert_eq!(runs[0]["expected"], Value::Bool(false));
}

#[test]
fn other_searches_find_bugs_and_never_pass() {
    for search in ["random", "pct", "bounded"] {
        let limits = ["--search", search, "--executions", "3000", "--memory", "sc"];
        let (good, runs) = json(&[&["litmus", "b01-x86"], &limits[..]].concat());
        assert!(good);
        for run in runs.as_array().unwrap() {
            let expected = if run["claimed"] == true { "incomplete" } else { "bug" };
            assert_eq!(run["verdict"], expected, "{search} {run}");
        }
    }
}

#[test]
fn bugs_prints_an_array_of_bugs() {
    let (good, bugs) = json(&["bugs", "B01", "B03", "S04"]);
    assert!(good);
    for bug in bugs.as_array().unwrap() {
        assert_eq!(keys(bug), ["executions", "found", "id", "kind", "planted", "runs", "seconds", "test", "title"]);
        assert_eq!(bug["found"], Value::Bool(true));
    }
    // B01 has variants, a test each.
    let ids: Vec<&Value> = bugs.as_array().unwrap().iter().map(|bug| &bug["id"]).collect();
    assert_eq!(ids, ["B01", "B01b", "B01c", "B03", "S04"]);
    let kinds: Vec<&Value> = bugs.as_array().unwrap().iter().map(|bug| &bug["kind"]).collect();
    assert_eq!(kinds, ["dereferences", "holds", "hardware-reaches", "dereferences", "leak"]);
    let (_, variant) = json(&["bugs", "B01b"]);
    assert_eq!(variant.as_array().unwrap().len(), 1);
}

/// Tests of lazy MMU mode run under generations and on back ends, of their own kind of options.
#[test]
fn lazy_mmu_mode_has_litmus_tests_too() {
    let (good, runs) = json(&[
        "litmus",
        "lazy-section",
        "--backend",
        "xen-x1",
        "--backend",
        "xen-x3",
        "--generation",
        "merged",
        "--generation",
        "hooks",
    ]);
    assert!(good);
    let ran = |run: &Value| {
        [&run["strategy"], &run["machine"], &run["verdict"]].map(|text| text.as_str().unwrap().to_owned())
    };
    let ran: Vec<[String; 3]> = runs.as_array().unwrap().iter().map(ran).collect();
    assert_eq!(ran, [["merged", "xen-x1", "pass"], ["merged", "xen-x3", "bug"], ["hooks", "xen-x1", "pass"]]);

    // What was found can be kept in a file and seen again.
    let file = scratch("m01.schedule", runs[1]["schedule"].as_str().unwrap());
    let setting = ["--generation", "merged", "--backend", "xen-x3", "--replay", file.to_str().unwrap()];
    let output = lazytlb(&[&["litmus", "lazy-section"], &setting[..]].concat());
    assert_eq!(output.status.code(), Some(1), "a bug is shown");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("warning: kernel BUG: "), "{report}");
    let other = [&["litmus", "lazy-nested"], &setting[..]].concat();
    assert!(refused(&other).contains("the schedule is for another program"));

    let (good, bugs) = json(&["bugs", "M24", "m10-batch-not-awaited"]);
    assert!(good);
    let ids: Vec<&Value> = bugs.as_array().unwrap().iter().map(|bug| &bug["id"]).collect();
    assert_eq!(ids, ["M24", "M24b", "M10"]);
    let text = String::from_utf8(lazytlb(&["bugs", "M10"]).stdout).unwrap();
    for part in ["BUG: KASAN: stale-translation in memset", "invariant: R11: a page is freed", "Planted:\n not-awaited"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = String::from_utf8(lazytlb(&["bugs", "M11"]).stdout).unwrap();
    assert!(text.contains("BUG: KASAN: lock-scope in spin_unlock"), "{text}");

    assert!(refused(&["litmus", "lazy-section", "--strategy", "refcount"]).contains("it is a test of lazy MMU mode"));
    assert!(refused(&["litmus", "b01-x86", "--backend", "s390"]).contains("b01-x86 is for "));
    assert!(
        refused(&["litmus", "lazy-section", "--backend", "alpha"])
            .contains("unknown back end `alpha`; there are: none")
    );
    assert!(refused(&["litmus", "m10-batch-not-awaited"]).contains("a bug is planted"));
    let file = scratch("bad-lazy.litmus", "lazytlb-litmus 1\nname t\nlazy-mmu merged\npte P\ntask a\nenable P\n");
    assert!(
        refused(&["litmus", file.to_str().unwrap()]).contains("bad-lazy.litmus:6:9: expected nothing, or two entries")
    );
}

#[test]
fn bugs_alone_lists_the_catalogue() {
    let (good, entries) = json(&["bugs"]);
    assert!(good);
    let entries = entries.as_array().unwrap();
    assert!(entries.len() >= 45, "{}", entries.len());
    for entry in entries {
        assert_eq!(keys(entry), ["id", "open", "tests", "title"]);
        assert_eq!(entry["open"].is_null(), !entry["tests"].as_array().unwrap().is_empty(), "{entry}");
        for test in entry["tests"].as_array().unwrap() {
            assert_eq!(keys(test), ["about", "expected", "planted", "test"]);
        }
    }
    let text = String::from_utf8(lazytlb(&["bugs"]).stdout).unwrap();
    for entry in entries {
        let line = text.lines().find(|line| line.trim_start().starts_with(entry["id"].as_str().unwrap()));
        assert!(line.is_some_and(|line| line.contains(entry["title"].as_str().unwrap())), "{entry}");
    }
    // What is open is explained, and is nothing that is missed.
    if let Some(open) = entries.iter().find(|entry| entry["open"].is_string()) {
        let output = lazytlb(&["bugs", open["id"].as_str().unwrap()]);
        let text = String::from_utf8(output.stdout).unwrap();
        let reason = open["open"].as_str().unwrap().lines().next().unwrap();
        assert!(text.contains(reason) && text.contains("Open: no litmus test shows it."), "{text}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn one_bug_is_explained() {
    let output = lazytlb(&["bugs", "B05"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "B05 A CPU that goes offline is passed by when borrowers are evicted",
        "Linux from 6.4",
        "Planted  the program itself breaks a rule",
        "Machine  broadcast-flush, ipi-unlazy",
        "hardware-reaches",
        "Who holds what:",
        "Timeline:",
        "Schedule:",
        "save the schedule as FILE, then: lazytlb litmus b05-offline-borrowing --strategy shootdown",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(text.matches("Timeline:").count(), 1, "the first finding's report, unless more are asked for");
    assert!(String::from_utf8(lazytlb(&["bugs", "B05", "--report"]).stdout).unwrap().matches("Timeline:").count() > 1);
}

/// A test that expects what is not there: the bug counts as missed, and the status says so.
#[test]
fn a_bug_that_is_missed_is_status_1() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus/s04-reference-lost.litmus")).unwrap();
    let file = scratch("missed.litmus", text.replace(" leak", " deadlock"));
    let (good, bugs) = json(&["bugs", file.to_str().unwrap()]);
    assert!(!good);
    assert_eq!(bugs[0]["found"], Value::Bool(false));
}

#[test]
fn a_bug_of_ones_own_is_looked_for() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../litmus/s04-reference-lost.litmus")).unwrap();
    let file = scratch("own.litmus", &text);
    let (good, bugs) = json(&["bugs", file.to_str().unwrap()]);
    assert!(good);
    assert_eq!(bugs[0]["kind"], "leak");

    // The report's command runs as it is printed.
    let output = lazytlb(&["bugs", file.to_str().unwrap(), "--report"]);
    let report = String::from_utf8(output.stdout).unwrap();
    let command = report.lines().find_map(|line| line.split_once("then: lazytlb ")).unwrap().1;
    let schedule = report.split("Schedule:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty());
    let schedule = scratch("own.schedule", schedule.map(|line| format!("{}\n", line.trim())).collect::<String>());
    let arguments: Vec<&str> =
        command.split(' ').map(|word| if word == "FILE" { schedule.to_str().unwrap() } else { word }).collect();
    let output = lazytlb(&arguments);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("leak:"));

    let file = scratch("label.litmus", text.replace("\ndrop ", "\ndrop no.such.label "));
    assert!(
        refused(&["bugs", file.to_str().unwrap()])
            .contains("`drop no.such.label`: nothing with that label is ever met")
    );
    let file = scratch("no-expect.litmus", text.replace("\nexpect ", "\n# expect "));
    assert!(refused(&["bugs", file.to_str().unwrap()]).contains("no `expect` line"));
}

#[test]
fn replay_prints_one_object() {
    let (good, replay) = json(&["replay", "traces/pipes-threads.trace.gz"]);
    assert!(good);
    for key in ["events", "switches", "inferred_switches", "seconds", "truth", "strategies"] {
        assert!(replay.get(key).is_some(), "{key}");
    }
    assert_eq!(keys(&replay["truth"]), ["agree", "compared", "disagreements", "observed", "unknown"]);
    let strategies = replay["strategies"].as_array().unwrap();
    assert_eq!(strategies.len(), lazytlb_sched_model::Strategy::all().count());
    for strategy in strategies {
        for key in ["name", "rmw", "transfers", "fences", "ipis", "interrupted", "root_loads", "zombie_byte_seconds"] {
            assert!(strategy.get(key).is_some(), "{key}");
        }
    }
    let last = strategies.last().unwrap();
    let (_, one) = json(&["replay", "traces/pipes-threads.trace.gz", "--strategy", last["name"].as_str().unwrap()]);
    assert_eq!(one["strategies"], serde_json::json!([last]));
}

#[test]
fn compare_prints_all_of_these() {
    let (good, all) = json(&["compare", "--strategy", "refcount", "--strategy", "shootdown"]);
    assert!(good, "{all}");
    assert_eq!(keys(&all), ["bugs", "lazy_mmu", "litmus", "mmu_notifier", "native", "not_run", "replay"]);
    for run in all["not_run"].as_array().unwrap() {
        assert_eq!(keys(run), ["machine", "memory", "strategy", "test"]);
    }
    assert_eq!(all["replay"].as_array().unwrap().len(), 2);
    assert_eq!(all["replay"][0]["strategies"].as_array().unwrap().len(), 2);
    assert_eq!(keys(&all["native"][0]), ["fastest_ns", "median_ns", "path", "slowest_ns", "strategy"]);
    for run in all["litmus"].as_array().unwrap() {
        assert!(run["strategy"] == "refcount" || run["strategy"] == "shootdown");
        assert!(run["claimed"] == false || run["verdict"] == "pass", "{run}");
    }
}

/// What is left out of the tables is counted in them.
#[test]
fn compare_says_what_is_not_run() {
    let (good, safety) = json(&["compare", "--safety", "--strategy", "no-lazy"]);
    assert!(good, "{safety}");
    assert_eq!(keys(&safety), ["lazy_mmu", "litmus", "mmu_notifier", "not_run"]);
    let not_run = safety["not_run"].as_array().unwrap();
    assert!(!not_run.is_empty());
    for run in not_run {
        assert_eq!((&run["test"], &run["machine"]), (&"broadcast-two-flush".into(), &"x86-broadcast".into()));
    }
    let text = String::from_utf8(lazytlb(&["compare", "--safety", "--strategy", "no-lazy"]).stdout).unwrap();
    assert!(text.starts_with("Safety: ") && !text.contains("Known bugs"), "{text}");
    assert_eq!(text.matches(&format!("; {} not run", not_run.len())).count(), 1, "{text}");
}

/// Slow runs are run where one asks for them, in shares that leave nothing out.
#[test]
fn what_is_slow_is_run_when_asked_for() {
    let test = "broadcast-two-flush";
    let ran = |arguments: &[&str]| {
        let (_, rows) = json(&[&["litmus", test, "--executions", "1"], arguments].concat());
        let name = |row: &Value| format!("{} {}", row["strategy"], row["memory"]);
        rows.as_array().unwrap().iter().map(name).collect::<Vec<_>>()
    };
    let mut slow = ran(&["--slow"]);
    assert!(!slow.is_empty() && slow.iter().all(|run| !ran(&[]).contains(run)), "{slow:?}");
    let mut shares = [ran(&["--slow", "--shard", "1/2"]), ran(&["--slow", "--shard", "2/2"])].concat();
    shares.sort_unstable();
    slow.sort_unstable();
    assert_eq!(shares, slow);
    assert_eq!(ran(&["--slow", "--strategy", "no-lazy"]), ["\"no-lazy\" \"sc\"", "\"no-lazy\" \"tso\""]);
    assert!(refused(&["litmus", test, "roam", "--slow"]).contains("roam does not say that it is slow there"));
    assert!(refused(&["litmus", "--slow", "--strategy", "refcount"]).contains("no test says that it is slow there"));
    assert!(refused(&["litmus", "roam", "--shard", "3/2"]).contains("expected K/N"));
}

#[test]
fn bad_input_is_refused_with_one_error() {
    assert_data_eq!(
        refused(&["litmus", "no-such-test"]),
        str![[r#"
error: no-such-test: No such file or directory (os error 2); it is no bundled test either (see `lazytlb litmus --list`)

"#]]
    );
    let file = scratch("unknown.litmus", "lazytlb-litmus 1\nname t\nmm A\nuser sh A\ncpu sh\njump\n");
    let error = refused(&["litmus", file.to_str().unwrap()]);
    assert!(error.contains("unknown.litmus:6:1: unknown statement `jump`"), "{error}");
    assert!(error.contains("\n    jump\n    ^"), "{error}");
    let file = scratch("script.litmus", "lazytlb-litmus 1\nname t\nmm A\nuser sh A\ncpu sh\nunuse-temporary-mm\n");
    let error = refused(&["litmus", file.to_str().unwrap()]);
    assert!(
        error.contains("script.litmus:6:1: no temporary tables are loaded\n    unuse-temporary-mm\n    ^"),
        "{error}"
    );
    let error = refused(&["litmus", "access-unmap", "--memory", "weak"]);
    assert!(error.contains("under sc, tso; `weak` knows no user accesses"), "{error}");
    let file = scratch("bytes.litmus", b"lazytlb-litmus 1\nname \xff\n");
    let error = refused(&["litmus", file.to_str().unwrap()]);
    assert!(error.contains("bytes.litmus:2:6: not text"), "{error}");
    assert!(refused(&["litmus", "--strategy", "none"]).contains("unknown strategy `none`; there are: no-lazy,"));
    assert!(refused(&["litmus", "b04-stale-slot"]).contains("`lazytlb bugs b04-stale-slot` looks for it"));
    assert!(refused(&["litmus", "b01-x86", "b04-stale-slot"]).contains("a bug is planted in b04-stale-slot"));
    let error = refused(&["litmus", "exit-alone", "b01-x86", "--machine", "plain"]);
    assert!(error.contains("nothing to run: b01-x86 is for ipi-flush"), "{error}");
    assert!(refused(&["soak", "--programs", "0"]).contains("0 is not in 1.."));
    let file = scratch("bytes.schedule", b"lazytlb-schedule 1\nprogram \xff\n");
    let one = ["litmus", "b01-x86", "--strategy", "refcount", "--memory", "sc", "--machine", "ipi-flush", "--replay"];
    let error = refused(&[&one[..], &[file.to_str().unwrap()]].concat());
    assert!(error.contains("bytes.schedule:2:9: not text"), "{error}");
    assert!(
        refused(&["litmus", "b01-x86", "--search", "pct", "--bound", "4294967295"])
            .contains("4294967295 is not in 0..=1000")
    );
    assert!(refused(&["bugs", "B99"]).contains("unknown bug `B99`; there are: A01,"));
    assert!(refused(&["litmus", "--replay", "no-such-file"]).contains("a schedule is of one test"));
    assert!(refused(&["replay", "no-such-trace"]).contains("no-such-trace: No such file"));
    let file = scratch("binary.trace", [0_u8; 4096]);
    assert!(refused(&["replay", file.to_str().unwrap()]).contains("binary.trace:1:1: not a trace"));
    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../traces/fork-exit.trace.gz")).unwrap();
    let file = scratch("cut.trace.gz", &whole[..whole.len() / 2]);
    let error = refused(&["replay", file.to_str().unwrap()]);
    assert!(error.contains("cut.trace.gz:") && error.contains("deflate"), "{error}");
    let tasks = scratch("bad.tasks", "1 one 0 init\n");
    let error = refused(&["replay", "traces/fork-exit.trace.gz", "--tasks", tasks.to_str().unwrap()]);
    assert!(error.contains("bad.tasks:1:3: expected: NUMBER GROUP 0|1 NAME"), "{error}");
}

/// Lists and replays, too, are for programs.
#[test]
fn a_list_and_a_replay_are_json() {
    let (good, listed) = json(&["litmus", "--list"]);
    assert!(good);
    assert_eq!(keys(&listed[0]), ["about", "bug", "test"]);
    let one = ["litmus", "b01-x86", "--strategy", "unprotected", "--memory", "sc", "--machine", "ipi-flush"];
    let (_, rows) = json(&one);
    let schedule = scratch("b01-x86.schedule", rows[0]["schedule"].as_str().unwrap());
    let (good, replayed) = json(&[&one[..], &["--replay", schedule.to_str().unwrap()]].concat());
    assert!(!good, "something is found");
    assert_eq!(keys(&replayed), ["found", "report", "steps", "verdict"]);
    assert_eq!(replayed["verdict"], "dereferences");
    assert!(replayed["report"].as_str().unwrap().contains("use-after-free in"));
}

#[test]
fn help_teaches() {
    let output = lazytlb(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    for word in ["compare", "litmus", "bugs", "replay", "Start with", "Exit status"] {
        assert!(help.contains(word), "{help}");
    }
}
