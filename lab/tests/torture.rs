//! `lazytlb torture`: right strategies pass whatever the timing is; what is planted is caught.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use snapbox::cmd::cargo_bin;

fn torture(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(cargo_bin!("lazytlb"));
    command.arg("torture").args(arguments).current_dir(root).env("NO_COLOR", "1").output().unwrap()
}

fn rows(arguments: &[&str]) -> (i32, Vec<Value>) {
    let output = torture(&[&["--json"], arguments].concat());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn all_strategies_pass_under_signals_and_polled() {
    let (status, rows) = rows(&["--strategy", "all", "--steps", "1500", "--cpus", "3", "--seconds", "600"]);
    let dirty: Vec<&Value> = rows.iter().filter(|row| row["found"] != 0 || row["left"] != 0).collect();
    assert!(status == 0 && dirty.is_empty(), "{dirty:#?}");
    let settings: BTreeSet<_> =
        rows.iter().map(|row| row["flush"].to_string() + &row["interrupts"].to_string()).collect();
    assert_eq!(settings.len(), 4);
    assert_eq!(rows.len() % 4, 0);
    assert!(rows.len() / 4 >= 16, "the library's strategies, and the adapters");
    for row in &rows {
        assert!(row["steps"].as_u64().unwrap() >= 4500 && row["mms"].as_u64().unwrap() > 100, "{row}");
    }
    let interrupted = |row: &Value| row["strategy"] == "shootdown" && row["interrupted"] != 0;
    assert!(rows.iter().any(interrupted), "borrowers are interrupted");
    let broadcast = |row: &&Value| row["flush"] == "broadcast" && row["strategy"] == "refcount";
    assert!(rows.iter().filter(broadcast).all(|row| row["interrupted"] == 0), "nobody else is");
}

/// On one CPU nothing hangs on timing: whoever is idle on an mm replaces it some time.
#[test]
fn each_planted_bug_is_caught() {
    for (mutation, expected) in [
        ("unprotected", "is freed, and cpu0 has it loaded"),
        ("drops-uncounted", "is freed, and cpu0 has it loaded"),
        ("never-flushed", "are freed, and cpu0 has them in its walk cache"),
        ("leaks", ""),
    ] {
        let (status, rows) = rows(&["--mutation", mutation, "--cpus", "1", "--steps", "3000", "--seconds", "600"]);
        assert_eq!((status, rows.len()), (0, 2), "{mutation}");
        for row in &rows {
            let findings: Vec<&str> =
                row["findings"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
            let is_found = findings.iter().any(|finding| finding.contains(expected));
            assert!(is_found != expected.is_empty(), "{mutation}: {findings:?}");
            assert!(row["left"] != 0 || mutation != "leaks", "{row}");
        }
    }
}

/// Where the flush of the last user ends all borrows, nothing more is needed: the bug does no harm, and is not said to be caught.
#[test]
fn what_is_not_caught_is_said() {
    let missed =
        ["--mutation", "unprotected", "--flush", "unlazy", "--interrupts", "polled", "--cpus", "1", "--steps", "3000"];
    let output = torture(&missed);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stdout).unwrap().contains("MISSED"));
}

#[test]
fn bad_flags_are_refused() {
    for (arguments, message) in [
        (["--strategy", "refcounts"], "unknown strategy; there are: no-lazy refcount"),
        (["--seconds", "0"], "0 is not in 1.."),
        (["--cpus", "129"], "129 is not in 1..=128"),
        (["--interrupts", "nmi"], "[possible values: signals, polled]"),
        (["--mutation", "none"], "[possible values: unprotected, leaks, drops-uncounted, never-flushed]"),
    ] {
        let output = torture(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(message), "{said}");
    }
}
