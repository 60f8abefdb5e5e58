//! `lazytlb soak`: nothing is found where strategies claim to work, what is planted is found and can be seen again, and shards
//! add up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use snapbox::cmd::cargo_bin;

fn lazytlb(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Command::new(cargo_bin!("lazytlb")).args(arguments).current_dir(root).env("NO_COLOR", "1").output().unwrap()
}

/// Runs `soak` with `--json`; says whether there was no alarm.
fn soak(arguments: &[&str]) -> (bool, Value) {
    let output = lazytlb(&[&["soak", "--json"], arguments].concat());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let status = output.status.code().unwrap();
    assert!(status <= 1, "status {status}");
    (status == 0, serde_json::from_slice(&output.stdout).unwrap())
}

fn refused(arguments: &[&str]) -> String {
    let output = lazytlb(&[&["soak"], arguments].concat());
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "nothing half-written");
    String::from_utf8(output.stderr).unwrap()
}

fn scratch(name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, contents).unwrap();
    path
}

/// Without what is another each time.
fn timeless(mut result: Value) -> Value {
    result["seconds"] = Value::Null;
    result
}

/// A few programs under all that is claimed.
#[test]
fn claimed_strategies_stand_random_programs() {
    let (good, result) = soak(&["--programs", "6", "--runs", "8"]);
    assert!(good, "{}", result["alarms"]);
    assert_eq!((&result["programs"], &result["alarms"]), (&json!(6), &json!([])));
    let strategies = result["strategies"].as_object().unwrap();
    assert!(strategies.len() >= 21 && !strategies.contains_key("unprotected"), "{strategies:?}");
    assert!(strategies.contains_key("hazard-deadline-now"), "variants are run too");
    for (strategy, counts) in strategies {
        let number = |what: &str| counts[what].as_u64().unwrap();
        assert_eq!(number("executions"), 8 * number("runs"), "{strategy}");
        assert!(number("steps") > number("executions") && number("failed") == 0, "{strategy}");
    }
}

const BAD: [&str; 9] =
    ["--unclaimed", "--strategy", "unprotected", "--machine", "broadcast-flush", "--runs", "16", "--programs", "12"];

/// What is found is a litmus file and a schedule, which `lazytlb litmus` takes.
#[test]
fn what_is_found_can_be_seen_again() {
    let (good, result) = soak(&BAD);
    assert!(good, "what is not claimed is no alarm");
    let alarms = result["alarms"].as_array().unwrap();
    assert!(!alarms.is_empty());
    for alarm in alarms {
        let text = |what: &str| alarm[what].as_str().unwrap();
        assert_eq!((text("strategy"), text("machine")), ("unprotected", "broadcast-flush"));
        let kind = text("kind");
        let file = scratch(&format!("soak-{kind}.litmus"), text("litmus"));
        let schedule = scratch(&format!("soak-{kind}.schedule"), text("schedule"));
        let setting = ["--strategy", "unprotected", "--machine", "broadcast-flush", "--memory", text("memory")];
        let file = ["litmus", file.to_str().unwrap(), "--replay", schedule.to_str().unwrap()];
        let output = lazytlb(&[&file, &setting[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let report = String::from_utf8(output.stdout).unwrap();
        assert!(report.contains(&format!(" {kind}: {}", text("message"))), "{report}");
    }
    let text = String::from_utf8(lazytlb(&[&["soak", "--report"], &BAD[..]].concat()).stdout).unwrap();
    for part in ["found, not claimed: ", "Timeline:", "lazytlb-litmus 1", "lazytlb-schedule 1", "no alarm"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// A label whose fence or access is taken away.
#[test]
fn what_is_planted_is_found() {
    let planted = ["--drop", "hazard.publish", "--strategy", "hazard-convert", "--machine", "broadcast-flush"];
    let (good, result) = soak(&[&planted[..], &["--programs", "24", "--runs", "16", "--memory", "sc"]].concat());
    assert!(good, "a planted bug is no alarm");
    let litmus = result["alarms"][0]["litmus"].as_str().expect("it is found");
    assert!(litmus.contains("\ndrop hazard.publish\n"), "{litmus}");
}

#[test]
fn shards_add_up_to_the_whole() {
    let of_shard = |shard: &str| {
        let (_, result) = soak(&[&BAD[..], &["--shard", shard]].concat());
        let file = format!("shard-{}.json", shard.replace('/', "-"));
        scratch(&file, serde_json::to_string(&result).unwrap())
    };
    let shards = ["2/3", "1/3", "3/3"].map(of_shard);
    let shards = shards.each_ref().map(|file| file.to_str().unwrap());
    let (good, merged) = soak(&[&["--merge"], &shards[..]].concat());
    assert!(good);
    let (_, mut whole) = soak(&BAD);
    // They say how many they were, and nothing else is different.
    whole["shape"]["of"] = json!(3);
    whole["shards"] = json!([1, 2, 3]);
    assert_eq!(timeless(merged), timeless(whole));

    let merge = |files: &[&str]| refused(&[&["--merge"], files].concat());
    assert!(merge(&shards[..2]).contains("error: not all shards are there: 3/3 missing"));
    assert!(merge(&[shards[0], shards[1], shards[0]]).contains("shard-2-3.json: shard 2/3 is there twice"));
    let (_, other) = soak(&[&BAD[..], &["--shard", "1/3", "--seed", "2"]].concat());
    let other = scratch("shard-other.json", serde_json::to_string(&other).unwrap());
    let error = merge(&[shards[0], other.to_str().unwrap()]);
    assert!(error.contains("shard-other.json: of another run than") && error.contains("another seed"), "{error}");
    let cut = scratch("shard-cut.json", "{\n  \"shape\": 7\n}");
    let error = merge(&[shards[0], cut.to_str().unwrap()]);
    assert!(error.contains("shard-cut.json:2:12: not what `lazytlb soak --json` prints: invalid type"), "{error}");
    assert!(merge(&["no-such-file"]).contains("no-such-file: No such file"));
}

#[test]
fn bad_input_is_one_clear_error() {
    assert!(refused(&["--shard", "4/3"]).contains("expected K/N, with K from 1 to N"));
    assert!(refused(&["--runs", "0"]).contains("0 is not in 1.."));
    let error = refused(&["--strategy", "shootdown", "--machine", "ipi-flush", "--programs", "1"]);
    assert!(error.contains("`--unclaimed` runs it there"), "{error}");
    let error = refused(&["--drop", "no.such.label", "--programs", "1", "--runs", "2", "--machine", "broadcast-flush"]);
    assert!(error.contains("nothing with the label `no.such.label` is ever met"), "{error}");
    assert!(refused(&["--merge", "a.json", "--seconds", "1"]).contains("cannot be used with"));
}
