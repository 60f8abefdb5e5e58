//! The litmus language of MMU notifiers: errors with their place, and no panic on any text.

use std::sync::LazyLock;

use lazytlb_machine::{Limits, Search};
use lazytlb_notifier_model::{Litmus, Model};
use lazytlb_programs::{litmus_texts, no_text_panics};

/// The text of all bundled tests.
static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| litmus_texts("mmu-notifier"));

/// Words that mean something somewhere.
const WORDS: [&str; 63] = [
    "start",
    "start-nonblock",
    "end",
    "zap",
    "clear",
    "set",
    "protect",
    "unprotect",
    "copy",
    "free",
    "page-out",
    "try-to-unmap",
    "page-mkclean",
    "evict",
    "unlink-table",
    "free-table",
    "flush-tlb",
    "age",
    "store",
    "load",
    "fault",
    "write",
    "read",
    "register",
    "unregister",
    "get",
    "put",
    "move",
    "synchronize",
    "free-device",
    "exit",
    "mmgrab",
    "mmdrop",
    "lock",
    "unlock",
    "device",
    "mirrors",
    "late",
    "cached",
    "form",
    "without",
    "releases",
    "posted",
    "kvm",
    "gru",
    "xpmem",
    "odp",
    "hmm",
    "userptr",
    "pins",
    "rmap",
    "sva",
    "d",
    "gpu",
    "P",
    "Q",
    "A",
    "ptl",
    "hazards",
    "|",
    "1",
    "99999999999999999999",
    "\u{1F600}",
];

/// What parses also runs: a few random executions of it do not panic.
fn feed(text: &str) {
    let Ok(litmus) = Litmus::parse(text) else { return };
    for &scheme in &litmus.schemes {
        let limits = Limits { stop_at_first: false, ..Limits::default() };
        let model = Model::new(&litmus.program, &litmus.setting(scheme));
        let found = model.explore(Search::Random { seed: 1, executions: 3 }, limits, |_| {}).found;
        assert!(found.iter().all(|found| found.verdict.kind != lazytlb_machine::Kind::Panic), "{text}\n{found:?}");
    }
}

no_text_panics!(Litmus, TEXTS, WORDS, feed);

/// What is wrong has its place.
#[test]
fn what_is_wrong_is_refused_with_its_place() {
    let header = "lazytlb-litmus 1\nname t\nmmu-notifier hazards\npte P Q\npage A\nspinlock L\ndevice d kvm\n";
    let refused =
        |rest: &str| Litmus::parse(&format!("{header}{rest}")).map_err(|error| error.to_string()).unwrap_err();
    for (rest, expected) in [
        ("", "7:1: the test has no tasks"),
        ("task a | task a\n", "8:15: there is `a` already"),
        ("task a\nstart Q P\n", "9:9: the last entry comes before the first"),
        ("task a\nstart P\n", "9:8: expected the first and the last entry"),
        ("task a\nset P B\n", "9:7: there is no page `B`"),
        ("task a\nfault e P\n", "9:7: there is no device `e`"),
        ("task a\nfault d P at-most 0\n", "9:19: expected a number from 1 to 99"),
        ("task a\nmove d P Q\n", "9:6: only the region of an `odp` device can be moved"),
        ("task a\nzap P Q\n", "9:7: `Q` is not known behind `zap`"),
        ("task a\nmunmap\n", "9:1: unknown statement `munmap`"),
        ("task a\n | end\n", "9:4: there are only 1 columns"),
        ("task a\nunlock L\n", "9:1: the task has not taken this lock"),
        ("task a\nlock L\nlock L\n", "10:1: the task has this lock already"),
        ("task a\nlock L\n", "9:1: the script ends with a lock held"),
        ("task a\nstart P P\nstart P P\nstart P P\nstart P P\nstart P P\n", "13:1: no more than 4"),
        ("device e vfio\n", "8:10: unknown client `vfio`; there are: kvm"),
        ("device e kvm P\n", "8:14: expected the first and the last entry"),
        ("device d kvm\n", "8:8: there is `d` already"),
        ("mirrors d P\n", "8:11: `P` maps nothing"),
        ("map P A\nmap P A\n", "9:5: `P` maps a page already"),
        ("form 2.6\n", "8:6: unknown form `2.6`; there are: posted"),
        ("form v3.6 with waits\n", "8:11: expected `without`"),
        ("form v3.6 without\n", "8:18: expected what is left out"),
        ("form v3.6 without hope\n", "8:19: unknown thing `hope`; there are: registers-alone"),
        ("form posted\ndevice e hmm\ntask a\nend\n", "11:1: former forms of the list have no hmm"),
        ("form posted\ntask a\nget d\n", "10:5: only who is in today's list is got and put"),
        ("cached e\n", "8:8: there is no device `e`"),
        ("cached\n", "8:7: expected one device after `cached`"),
        ("mutant sleepy\n", "8:8: unknown mutant `sleepy`; there are: caller"),
        ("name again\n", "8:1: there is a line `name` already"),
        ("strategy refcount\n", "8:1: `strategy` is not known here"),
        ("task a\n\nexpect hazards I1\n", "10:8: nothing is planted, and all clients are right"),
        ("task a\n\nexpect srcu I1\n", "10:8: the test is not for srcu"),
        ("mutant caller\ntask a\n\nexpect hazards I99\n", "11:16: unknown verdict `I99`"),
    ] {
        assert!(refused(rest).starts_with(expected), "{rest}: {}", refused(rest));
    }
    let refused = |text: &str| Litmus::parse(text).map_err(|error| error.to_string()).unwrap_err();
    assert_eq!(refused("herd"), "1:1: not a litmus test of this version: expected `lazytlb-litmus 1`");
    assert!(refused("lazytlb-litmus 1\nname t\ntask a\n").starts_with("3:1: the test has no line `mmu-notifier`"));
}
