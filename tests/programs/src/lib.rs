//! What tests share: small programs for the machine (the hazard-pointer program, a shootdown), generic over the memory; texts with
//! something wrong.

use core::panic::Location;
use std::fs;
use std::path::Path;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, LocalWord, Memory, Ordering::*};
use lazytlb_machine::{Config, Kind, Machine, MemoryModel, ObjectKind, Sim};

/// Orders a reader's slot before its second look.
pub const READER_FENCE: Label = Label::new("test.reader_fence");
/// Orders the writer's unpublishing before its scan.
pub const WRITER_FENCE: Label = Label::new("test.writer_fence");

/// One round of a reader of the textbook hazard pointer: protect, look again, `look` at the object, release. Says what it
/// saw, if it looked.
pub fn read<M: Memory>(
    memory: M,
    published: &M::AtomicUsize,
    slot: &M::AtomicUsize,
    look: impl FnOnce() -> usize,
) -> Option<usize> {
    let seen = published.load(Relaxed);
    if seen == 0 {
        return None;
    }
    slot.store(seen, Release);
    memory.fence(SeqCst.at(READER_FENCE));
    let value = (published.load(Acquire) == seen).then(look);
    slot.store(0, Release);
    value
}

/// The writer: unpublish, scan, and say whether nobody protects the object.
pub fn retire<'a, M: Memory + 'a>(
    memory: M,
    published: &M::AtomicUsize,
    mut slots: impl Iterator<Item = &'a M::AtomicUsize>,
) -> bool
where
    M::AtomicUsize: 'a,
{
    published.store(0, Relaxed);
    memory.fence(SeqCst.at(WRITER_FENCE));
    slots.all(|slot| slot.load(Acquire) == 0)
}

/// What the words of the simulated program are.
struct Words {
    published: <Sim as Memory>::AtomicUsize,
    slots: [<Sim as Memory>::AtomicUsize; 4],
    /// What each reader has seen, and whether the writer has freed: the outcome.
    results: [<Sim as Memory>::LocalUsize; 5],
}

fn config(cpus: usize, memory: MemoryModel, dropped: &[Label]) -> Config {
    let dropped = dropped.iter().map(|label| label.name().to_owned()).collect();
    Config { cpus, memory, bytes: 8 << 10, dropped, ..Config::default() }
}

/// `readers` readers of `rounds` rounds each, and a writer. The body is an object; freeing it is the writer's last step.
pub fn hazard(readers: usize, rounds: usize, memory: MemoryModel, dropped: &[Label]) -> Machine {
    let machine = Machine::new(config(readers + 1, memory, dropped));
    let zero = || AtomicWord::new(0);
    let words = machine.place(
        "words",
        ObjectKind::Other,
        Words {
            published: AtomicWord::new(1),
            slots: [zero(), zero(), zero(), zero()],
            results: [(); 5].map(|()| LocalWord::new(0)),
        },
    );
    let words: &'static Words = leak(words);
    let cache = machine.create_cache("body", ObjectKind::Other, 1, |_| <Sim as Memory>::AtomicUsize::new(7));
    let body = machine.alloc_at_setup(cache);
    for reader in 0..readers {
        let task = machine.add_task(&format!("reader{reader}"), move || {
            // SAFETY: the slot stays in the arena; whether it is allocated is what the machine checks.
            let body = unsafe { body.as_ref() };
            let mut seen = 1;
            for _ in 0..rounds {
                let value = read(Sim, &words.published, &words.slots[reader], || body.load(Relaxed));
                seen = seen * 10 + value.map_or(0, |value| value - 6);
            }
            words.results[reader].set(seen);
        });
        machine.boot(task, true);
    }
    let writer = machine.add_task("writer", move || {
        if retire(Sim, &words.published, words.slots[..readers].iter()) {
            Machine::with(|machine| machine.free(body, Location::caller()));
            words.results[readers].set(1);
        }
    });
    machine.boot(writer, true);
    machine.outcome(move |_, values| values.extend(words.results.iter().map(|word| word.peek() as u64)));
    machine
}

/// `lazies` CPUs borrow an object: `rounds` times they look at it with interrupts off, if they still hold it. The boss
/// interrupts them, waits for all to let go unless `forgets_to_wait`, and frees it.
pub fn shootdown(lazies: usize, rounds: usize, memory: MemoryModel, forgets_to_wait: bool) -> Machine {
    struct Cpu {
        holds: <Sim as Memory>::LocalUsize,
        looks: <Sim as Memory>::LocalUsize,
    }
    let machine = Machine::new(config(lazies + 1, memory, &[]));
    let cpus = leak_slice(machine.place_slice("cpu", ObjectKind::PerCpu, lazies, |_| Cpu {
        holds: LocalWord::new(1),
        looks: LocalWord::new(0),
    }));
    let acks: &'static <Sim as Memory>::AtomicUsize =
        leak(machine.place("acks", ObjectKind::Other, AtomicWord::new(0)));
    let cache = machine.create_cache("mm", ObjectKind::Mm, 1, |_| <Sim as Memory>::AtomicUsize::new(7));
    let mm = machine.alloc_at_setup(cache);
    for (lazy, cpu) in cpus.iter().enumerate() {
        let task = machine.add_task(&format!("lazy{lazy}"), move || {
            for _ in 0..rounds {
                Machine::with(|machine| {
                    let were_on = machine.irq_save(Label::NONE);
                    if cpu.holds.get() == 1 {
                        // SAFETY: the slot stays in the arena; whether it is allocated is what the machine checks.
                        let value = unsafe { mm.as_ref() }.load(Relaxed);
                        cpu.looks.set(cpu.looks.get() + value);
                    }
                    machine.irq_restore(were_on);
                });
            }
        });
        machine.boot(task, true);
    }
    let boss = machine.add_task("boss", move || {
        Machine::with(|machine| {
            machine.send_ipi((1 << lazies) - 1, 0);
            if !forgets_to_wait {
                Sim.spin_until(|| (acks.load(Acquire) == lazies).then_some(()));
            }
            machine.free(mm, Location::caller());
        });
    });
    machine.boot(boss, true);
    machine.on_interrupt(move |_| {
        let cpu = Machine::with(Machine::this_cpu);
        cpus[cpu].holds.set(0);
        acks.fetch_add(1, AcqRel);
    });
    machine.outcome(move |_, values| values.extend(cpus.iter().map(|cpu| cpu.looks.peek() as u64)));
    machine
}

/// Forgets for how long a structure is placed: the machine outlives its tasks, but the borrow checker cannot know.
pub fn leak<T>(placed: &mut T) -> &'static T {
    let placed: *const T = placed;
    // SAFETY: placed in the arena of a machine that the test keeps until the end.
    unsafe { &*placed }
}

/// As [`leak`], for an array.
pub fn leak_slice<T>(placed: &mut [T]) -> &'static [T] {
    let placed: *const [T] = placed;
    // SAFETY: as `leak`.
    unsafe { &*placed }
}

/// The kinds of errors that a search found.
pub fn kinds(exploration: &lazytlb_machine::Exploration) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = exploration.found.iter().map(|found| found.verdict.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// A text with something wrong: at a place that is `at` out of all, a character more or less, all behind it gone, or another word.
pub fn damage(text: &str, at: impl Fn(usize) -> usize, kind: u8, character: char, word: &str) -> String {
    let mut text = text.to_owned();
    let places: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
    let at = places[at(places.len())];
    match kind {
        0 => text.insert(at, character),
        1 => drop(text.remove(at)),
        2 => text.truncate(at),
        _ => {
            let start = text[..at].rfind(char::is_whitespace).map_or(0, |place| place + 1);
            let end = text[at..].find(char::is_whitespace).map_or(text.len(), |length| at + length);
            if start <= end {
                text.replace_range(start..end, word);
            }
        }
    }
    text
}

/// The text of all bundled litmus tests in a folder of `litmus/`, itself if it is empty.
pub fn litmus_texts(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../litmus").join(folder);
    let files = fs::read_dir(folder).expect("the folder is there").map(|file| file.expect("it can be read").path());
    files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).expect("it is a text")).collect()
}

/// The tests by which a litmus language bears any text: its type, the text of its bundled tests, words that mean something in it, and what to do with a
/// text. The crate has `proptest`.
#[macro_export]
macro_rules! no_text_panics {
    ($litmus:ty, $texts:expr, $words:expr, $feed:path) => {
        proptest::proptest! {
            #![proptest_config(proptest::prelude::ProptestConfig {
                cases: 1500,
                failure_persistence: None,
                ..proptest::prelude::ProptestConfig::default()
            })]

            #[test]
            fn damaged_tests_never_panic(
                file: proptest::sample::Index,
                at: proptest::sample::Index,
                word: proptest::sample::Index,
                kind in 0..4u8,
                character: char
            ) {
                let (text, word) = (&$texts[file.index($texts.len())], $words[word.index($words.len())]);
                $feed(&$crate::damage(text, |count| at.index(count), kind, character, word));
            }

            #[test]
            fn any_text_is_refused_or_read(text: String) {
                let _ = <$litmus>::parse(&text);
                let _ = <$litmus>::parse(&format!("lazytlb-litmus 1\n{text}"));
            }
        }
    };
}
