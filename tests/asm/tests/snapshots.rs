//! The assembly of the hot paths, pinned: labels, steps and traits cost nothing, and no locked instruction creeps in.
//!
//! The text is the pinned compiler's. A new compiler may write other instructions for the same thing: renew the
//! snapshots with `INSTA_UPDATE=always` and read the difference; the counts below must hold whatever the compiler.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// The instructions of each function, in the order of the file.
fn assembly() -> Vec<(String, Vec<String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target/asm");
    let status = Command::new(env!("CARGO"))
        .args(["rustc", "--quiet", "--release", "-p", "lazytlb-asm", "--lib", "--target-dir"])
        .arg(&target)
        .args(["--config", "profile.release.lto=false", "--", "--emit=asm", "-Cdebuginfo=0", "-Cpanic=abort"])
        .env_remove("RUSTFLAGS")
        .current_dir(&root)
        .status()
        .expect("cargo runs, it runs this test");
    assert!(status.success());
    let deps = target.join("release/deps");
    let files = fs::read_dir(deps).expect("cargo has just written there").map(|entry| entry.expect("readable").path());
    let newest = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "s"))
        .max_by_key(|path| path.metadata().and_then(|data| data.modified()).expect("a time"))
        .expect("assembly was asked for");
    functions(&fs::read_to_string(newest).expect("just written"))
}

fn functions(text: &str) -> Vec<(String, Vec<String>)> {
    let mut functions: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        let code = line.split('#').next().unwrap_or_default().trim_end();
        if let Some(label) = code.strip_suffix(':')
            && !label.starts_with('.')
        {
            functions.push((label.trim_matches('"').to_owned(), Vec::new()));
        } else if let Some((alias, known)) = code.split_once(" = ") {
            // Equal functions are merged into one with two names.
            let same =
                functions.iter().find(|(name, _)| name == known).expect("a name stands for an earlier one").1.clone();
            functions.push((alias.trim().to_owned(), same));
        } else if let Some((_, instructions)) = functions.last_mut()
            && !code.is_empty()
            && (!code.trim_start().starts_with('.') || code.starts_with(".LBB"))
            && !code.starts_with(".set")
        {
            instructions.push(code.replace('\t', " ").trim().to_owned());
        }
    }
    functions
}

#[test]
fn hot_paths_are_what_they_should_be() {
    let assembly = assembly();
    let function = |name: &str| {
        let found = assembly.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("{name} was not compiled to a function of its own")).1.clone()
    };
    let count = |name: &str, what: fn(&str) -> bool| function(name).iter().filter(|line| what(line)).count();
    let locked = |line: &str| line.starts_with("lock") || line.starts_with("xchg") || line.starts_with("mfence");
    let jumps = |line: &str| line.starts_with('j') || line.starts_with("call");

    // One plain store, and back.
    assert_eq!(function("hazard_mmgrab_lazy_tlb").len(), 2, "{:?}", function("hazard_mmgrab_lazy_tlb"));
    assert_eq!(count("hazard_mmgrab_lazy_tlb", locked), 0);
    assert_eq!(function("hazard_leave_lazy_tlb").len(), 2, "{:?}", function("hazard_leave_lazy_tlb"));
    assert_eq!(count("hazard_leave_lazy_tlb", locked), 0);
    // One locked instruction for the count, and none for a borrow that costs nothing.
    assert_eq!(count("refcount_mmgrab_lazy_tlb", locked), 1);
    assert_eq!(function("shootdown_mmgrab_lazy_tlb"), ["retq"]);
    // The end of a borrow: membarrier's fence and nothing else.
    for name in ["hazard_mmdrop_lazy_tlb", "shootdown_mmdrop_lazy_tlb"] {
        assert_eq!((count(name, locked), count(name, jumps)), (1, 0), "{:?}", function(name));
    }
    // Lazy MMU mode's hot calls are what one would write by hand, where the counters are cells. Where they are atomics the compiler
    // loads them before it compares or counts. (Their text has names of statics, which are others in each checkout.)
    let without_labels = |name: &str| {
        let words = function(name).join("\n").replace(|c: char| c == '_' || c.is_ascii_digit(), "");
        words.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for call in ["enable", "disable"] {
        let by_hand = format!("by_hand_{call}");
        assert_eq!(without_labels(&format!("lazy_mmu_{call}_in_cells")), without_labels(&by_hand));
        let ours = format!("lazy_mmu_{call}");
        let (length, shortest) = (function(&ours).len(), function(&by_hand).len());
        assert!(length <= shortest + 3, "{ours}: {length} instructions, by hand {shortest}");
        assert_eq!(count(&ours, locked), count(&by_hand, locked), "{:?}", function(&ours));
    }
    // Where nobody is subscribed a pair is a load and a branch, and where there are no MMU notifiers it is nothing.
    let pair = function("mmu_notifier_pair");
    let way = pair.iter().position(|line| line.starts_with('j')).expect("a branch");
    assert!(way <= 6 && ["test", "cmp"].iter().any(|one| pair[way - 1].starts_with(one)), "{pair:?}");
    assert_eq!(function("mmu_notifier_pair_compiled_out"), ["retq"]);

    let mut text = String::new();
    for (name, instructions) in assembly
        .iter()
        .filter(|(name, _)| ["hazard_", "refcount_", "shootdown_"].iter().any(|family| name.starts_with(family)))
    {
        text += &format!("{name}:\n");
        for instruction in instructions {
            let indent = if instruction.starts_with('.') { "" } else { "    " };
            text += &format!("{indent}{instruction}\n");
        }
    }
    insta::assert_snapshot!(text);
}
