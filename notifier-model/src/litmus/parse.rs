//! Litmus tests from text, line by line; every error with its place.

use std::collections::BTreeSet;

use lazytlb_machine::text::{Line, Place, TextError, Word};
use lazytlb_mmu_notifier::former::Form;

use super::{FLAGS, Litmus};
use crate::names::{Client, Mutant, Scheme};
use crate::program::{Device, Program, Statement};
use crate::rules::Invariant;
use crate::world::DEEPEST;

/// More than any search could come to the end of.
const MOST_TASKS: usize = 6;
/// Likewise.
const MOST_NAMES: usize = 8;
/// More than any program makes a driver try.
const MOST_TRIES: usize = 99;

/// Lines of the header that say all in one.
const ONCE: [&str; 5] = ["name", "mmu-notifier", "form", "mutant", "bug"];

const STATEMENTS: &str = "start, start-nonblock, end, zap, clear, set, protect, unprotect, copy, free, page-out, try-to-unmap, page-mkclean, evict, unlink-table, free-table, flush-tlb, age, store, load, fault, write, read, \
    register, unregister, get, put, move, synchronize, free-device, exit, mmgrab, mmdrop, lock, unlock";

const HEADER: &str =
    "name, mmu-notifier, form, pte, page, map, device, mirrors, late, cached, spinlock, mutex, mutant, bug, or task";

/// What has been read so far.
struct Reader {
    litmus: Litmus,
    in_header: bool,
    said: Vec<&'static str>,
    /// The last line that says anything.
    last: Place,
    /// Each `expect`.
    expected: Vec<Place>,
    /// Each statement of each task.
    statements: Vec<Vec<Place>>,
}

impl Litmus {
    /// Whether a text is of this kind: its header has a line `mmu-notifier`.
    pub fn is_one(text: &str) -> bool {
        let mut header = Line::all(text).take_while(|line| !line.text.trim_start().starts_with("cpu "));
        header.any(|line| line.text.split_whitespace().next() == Some("mmu-notifier"))
    }

    /// Reads a litmus test.
    ///
    /// # Errors
    /// With line and column, if it is none.
    pub fn parse(text: &str) -> Result<Litmus, TextError> {
        let (first, lines) = Line::of_litmus(text)?;
        let litmus = Litmus {
            about: String::new(),
            program: Program::default(),
            schemes: Vec::new(),
            mutant: None,
            bug: None,
            allowed: BTreeSet::new(),
            expected: Vec::new(),
        };
        let mut reader = Reader {
            litmus,
            in_header: true,
            said: Vec::new(),
            last: first.place(1),
            expected: Vec::new(),
            statements: Vec::new(),
        };
        for line in lines {
            reader.line(&line)?;
        }
        reader.finish()
    }
}

impl Reader {
    fn line(&mut self, line: &Line<'_>) -> Result<(), TextError> {
        let (code, comment) = line.code();
        let is_about = code.trim().is_empty() && self.in_header && self.litmus.program.name.is_empty();
        if let Some(comment) = comment.filter(|_| is_about) {
            self.litmus.about.push_str(comment.trim());
            self.litmus.about.push('\n');
        }
        let words: Vec<Word<'_>> = line.words(code).collect();
        let Some(&first) = words.first() else { return Ok(()) };
        self.last = line.place(1);
        let rest = &words[1..];
        match first.text {
            "task" => self.columns(line, code),
            "allow" if rest.is_empty() => Err(line.error(line.end(code), "expected what is allowed")),
            "allow" => {
                self.litmus.allowed.extend(line.parse_all(rest, Invariant::found)?);
                Ok(())
            }
            "expect" => self.expect(line, code, rest),
            _ if !self.in_header => self.row(line, code),
            _ => self.header(line, code, first, rest),
        }
    }

    fn header(&mut self, line: &Line<'_>, code: &str, key: Word<'_>, rest: &[Word<'_>]) -> Result<(), TextError> {
        let missing = |what: &str| line.error(line.end(code), format!("expected {what} after `{}`", key.text));
        if let Some(&once) = ONCE.iter().find(|&&once| once == key.text) {
            if self.said.contains(&once) {
                return Err(line.error(key.column, format!("there is a line `{once}` already")));
            }
            self.said.push(once);
        }
        let program = &mut self.litmus.program;
        match (key.text, rest) {
            ("name", [name]) => program.name = name.text.to_owned(),
            ("name", _) => return Err(missing("one name")),
            ("mmu-notifier", []) => self.litmus.schemes = Scheme::ALL.to_vec(),
            ("mmu-notifier", schemes) => self.litmus.schemes = line.parse_all(schemes, str::parse::<Scheme>)?,
            ("form", [name, without @ ..]) => program.form = Some(form(line, code, *name, without)?),
            ("form", []) => return Err(missing("a form")),
            ("pte" | "page" | "spinlock" | "mutex", []) => return Err(missing("a name")),
            ("pte", names) => line.declare(&mut program.ptes, names, "entry", MOST_NAMES)?,
            ("page", names) => line.declare(&mut program.pages, names, "page", MOST_NAMES)?,
            ("spinlock", names) => line.declare(&mut program.locks, names, "lock", MOST_NAMES)?,
            ("mutex", names) => {
                let first = program.locks.len();
                line.declare(&mut program.locks, names, "lock", MOST_NAMES)?;
                program.mutexes.extend(first..program.locks.len());
            }
            ("map", [pte, page] | [pte, page, Word { text: "read-only", .. }]) => {
                let mapped = (line.named(*pte, &program.ptes, "entry")?, line.named(*page, &program.pages, "page")?);
                if program.mapped.iter().any(|one| one.0 == mapped.0) {
                    return Err(line.error(pte.column, format!("`{}` maps a page already", pte.text)));
                }
                program.mapped.push(mapped);
                program.protected.extend(rest.get(2).map(|_| mapped.0));
            }
            ("map", _) => return Err(missing("an entry and a page, and perhaps `read-only`,")),
            ("device", [name, client, entries @ ..]) => self.device(line, *name, *client, entries)?,
            ("device", _) => return Err(missing("a name and a client")),
            ("mirrors", [name, ptes @ ..]) if !ptes.is_empty() => {
                let device = device_of(line, program, *name)?;
                for &word in ptes {
                    let entry = line.named(word, &program.ptes, "entry")?;
                    if !program.mapped.iter().any(|(one, _)| *one == entry) {
                        return Err(line.error(word.column, format!("`{}` maps nothing", word.text)));
                    }
                    program.devices[device].mapped.push(entry);
                }
            }
            ("mirrors", _) => return Err(missing("a device and entries")),
            ("late", [name]) => {
                let device = device_of(line, program, *name)?;
                program.devices[device].subscribed = false;
            }
            ("cached", [name]) => {
                let device = device_of(line, program, *name)?;
                program.devices[device].cached = true;
            }
            ("late" | "cached", _) => return Err(missing("one device")),
            ("mutant", [mutant]) => self.litmus.mutant = Some(line.parse_one(*mutant, str::parse::<Mutant>)?),
            ("mutant", _) => return Err(missing("one mutant")),
            ("bug", _) => self.litmus.bug = Some(line.bug(code, rest)?),
            _ => {
                let message = format!("`{}` is not known here; expected {HEADER}", key.text);
                return Err(line.error(key.column, message));
            }
        }
        Ok(())
    }

    /// `device NAME CLIENT [FIRST LAST]`
    fn device(
        &mut self,
        line: &Line<'_>,
        name: Word<'_>,
        client: Word<'_>,
        words: &[Word<'_>],
    ) -> Result<(), TextError> {
        let program = &mut self.litmus.program;
        let mut names: Vec<String> = program.devices.iter().map(|device| device.name.clone()).collect();
        line.declare(&mut names, &[name], "device", MOST_NAMES)?;
        let client = line.parse_one(client, str::parse::<Client>)?;
        let pte = |word: Word<'_>| line.named(word, &program.ptes, "entry");
        let entries = match *words {
            [] if program.ptes.is_empty() => return Err(line.error(name.column, "there are no entries yet")),
            [] => 0..=program.ptes.len() - 1,
            [first, last] if pte(first)? <= pte(last)? => pte(first)?..=pte(last)?,
            [_, last] => return Err(line.error(last.column, "the last entry comes before the first")),
            [first, ..] => return Err(line.error(first.column, "expected the first and the last entry, or nothing")),
        };
        let name = name.text.to_owned();
        program.devices.push(Device { name, client, entries, subscribed: true, cached: false, mapped: Vec::new() });
        Ok(())
    }

    /// `task NAME | task NAME`
    fn columns(&mut self, line: &Line<'_>, code: &str) -> Result<(), TextError> {
        if !self.in_header {
            return Err(line.error(1, "the columns are named already"));
        }
        self.in_header = false;
        for cell in code.split('|') {
            let words: Vec<Word<'_>> = line.words(cell).collect();
            let [Word { text: "task", .. }, name] = words[..] else {
                return Err(line.error(line.end(cell), "expected `task` and its name"));
            };
            line.declare(&mut self.litmus.program.tasks, &[name], "task", MOST_TASKS)?;
            self.litmus.program.scripts.push(Vec::new());
            self.statements.push(Vec::new());
        }
        Ok(())
    }

    fn row(&mut self, line: &Line<'_>, code: &str) -> Result<(), TextError> {
        for (task, cell) in code.split('|').enumerate() {
            let words: Vec<Word<'_>> = line.words(cell).collect();
            let Some(&first) = words.first() else { continue };
            if task >= self.litmus.program.tasks.len() {
                let message = format!("there are only {} columns", self.litmus.program.tasks.len());
                return Err(line.error(first.column, message));
            }
            let statement = self.statement(line, cell, &words)?;
            self.litmus.program.scripts[task].push(statement);
            self.statements[task].push(line.place(first.column));
        }
        Ok(())
    }

    fn statement(&self, line: &Line<'_>, cell: &str, words: &[Word<'_>]) -> Result<Statement, TextError> {
        use Statement::*;
        let program = &self.litmus.program;
        let (key, rest) = (words[0], &words[1..]);
        let pte = |word: &Word<'_>| line.named(*word, &program.ptes, "entry");
        let page = |word: &Word<'_>| line.named(*word, &program.pages, "page");
        let device = |word: &Word<'_>| device_of(line, program, *word);
        let lock = |word: &Word<'_>| line.named(*word, &program.locks, "lock");
        let listed = |word: &Word<'_>| {
            let device = device_of(line, program, *word)?;
            let is_listed =
                program.form.is_none() && !matches!(program.devices[device].client, Client::Hmm | Client::Rmap);
            is_listed
                .then_some(device)
                .ok_or_else(|| line.error(word.column, "only who is in today's list is got and put"))
        };
        Ok(match (key.text, rest) {
            ("start" | "start-nonblock", [first, last]) | ("move", [_, first, last]) if pte(first)? > pte(last)? => {
                return Err(line.error(last.column, "the last entry comes before the first"));
            }
            ("start", [first, last]) => Start(pte(first)?, pte(last)?),
            ("start-nonblock", [first, last]) => StartNonblock(pte(first)?, pte(last)?),
            ("end", []) => End,
            ("zap", [one]) => Zap(pte(one)?),
            ("clear", [one]) => Clear(pte(one)?),
            ("set", [one, to]) => Set(pte(one)?, page(to)?),
            ("protect", [one]) => Protect(pte(one)?),
            ("unprotect", [one]) => Unprotect(pte(one)?),
            ("copy", [to]) => Copy(page(to)?),
            ("free", []) => Free,
            ("page-out", [one]) => PageOut(pte(one)?),
            ("try-to-unmap", [one]) => TryToUnmap(pte(one)?),
            ("page-mkclean", [one]) => PageMkclean(pte(one)?),
            ("evict", []) => Evict,
            ("unlink-table", []) => UnlinkTable,
            ("free-table", []) => FreeTable,
            ("flush-tlb", [one]) => FlushTlb(pte(one)?),
            ("age", [one]) => Age(pte(one)?),
            ("store", [one]) => Store(pte(one)?),
            ("load", [one]) => Load(pte(one)?),
            ("fault", [by, one]) => Fault(device(by)?, pte(one)?, None),
            ("fault", [by, one, Word { text: "at-most", .. }, most]) => {
                Fault(device(by)?, pte(one)?, Some(tries(line, *most)?))
            }
            ("write", [by, one]) => Write(device(by)?, pte(one)?),
            ("read", [by, one]) => Read(device(by)?, pte(one)?),
            ("register", [one]) => Register(device(one)?),
            ("unregister", [one]) => Unregister(device(one)?),
            ("get", [one]) => Get(listed(one)?),
            ("put", [one]) => Put(listed(one)?),
            ("move", [one, first, last]) => {
                let moved = device(one)?;
                if program.devices[moved].client != Client::Odp {
                    return Err(line.error(one.column, "only the region of an `odp` device can be moved"));
                }
                Move(moved, pte(first)?, pte(last)?)
            }
            ("synchronize", []) => Synchronize,
            ("free-device", [one]) => FreeDevice(device(one)?),
            ("exit", []) => Exit,
            ("mmgrab", []) => Mmgrab,
            ("mmdrop", []) => Mmdrop,
            ("lock", [one]) => Lock(lock(one)?),
            ("unlock", [one]) => Unlock(lock(one)?),
            _ => return Err(wrong_statement(line, cell, key, rest)),
        })
    }

    /// `expect SCHEME FOUND...`
    fn expect(&mut self, line: &Line<'_>, code: &str, rest: &[Word<'_>]) -> Result<(), TextError> {
        let [scheme, all @ ..] = rest else {
            return Err(line.error(line.end(code), "expected a scheme of walks, and what is found"));
        };
        self.expected.push(line.place(scheme.column));
        let scheme = line.parse_one(*scheme, str::parse)?;
        self.litmus.expected.push((scheme, line.parse_all(all, Invariant::found)?.into_iter().collect()));
        Ok(())
    }

    fn finish(self) -> Result<Litmus, TextError> {
        if self.litmus.program.name.is_empty() {
            return Err(self.last.error("the test has no name"));
        }
        if self.litmus.schemes.is_empty() {
            return Err(self.last.error("the test has no line `mmu-notifier`"));
        }
        if self.in_header {
            return Err(self.last.error("the test has no tasks: expected a line such as `task TASK | task TASK`"));
        }
        let of_today = self.litmus.program.devices.iter().find(|device| !device.client.is_of_list());
        if let (Some(_), Some(device)) = (self.litmus.program.form, of_today) {
            return Err(self.last.error(format!("former forms of the list have no {}", device.client)));
        }
        self.check_scripts()?;
        self.check_expectations()?;
        Ok(self.litmus)
    }

    /// Locks are released by who has taken them, and what was begun can be counted.
    fn check_scripts(&self) -> Result<(), TextError> {
        for (script, places) in self.litmus.program.scripts.iter().zip(&self.statements) {
            let (mut locked, mut started) = (Vec::new(), 0usize);
            for (statement, place) in script.iter().zip(places) {
                match *statement {
                    Statement::Lock(lock) if locked.contains(&lock) => {
                        return Err(place.error("the task has this lock already"));
                    }
                    Statement::Lock(lock) => locked.push(lock),
                    Statement::Unlock(lock) => match locked.iter().position(|&one| one == lock) {
                        Some(at) => drop(locked.remove(at)),
                        None => return Err(place.error("the task has not taken this lock")),
                    },
                    Statement::Start(..) | Statement::StartNonblock(..) if started == DEEPEST => {
                        return Err(place.error(format!("no more than {DEEPEST} invalidations can go on")));
                    }
                    Statement::Start(..) | Statement::StartNonblock(..) => started += 1,
                    Statement::End => started = started.saturating_sub(1),
                    _ => {}
                }
            }
            if let Some(last) = places.last().filter(|_| !locked.is_empty()) {
                return Err(last.error("the script ends with a lock held"));
            }
        }
        Ok(())
    }

    /// What is expected must be looked at.
    fn check_expectations(&self) -> Result<(), TextError> {
        let Litmus { expected, schemes, .. } = &self.litmus;
        for (index, ((scheme, found), place)) in expected.iter().zip(&self.expected).enumerate() {
            if !schemes.contains(scheme) {
                return Err(place.error(format!("the test is not for {scheme}")));
            }
            if expected[..index].iter().any(|(other, _)| other == scheme) {
                return Err(place.error(format!("what is expected of {scheme} was said before")));
            }
            if self.litmus.is_claimed() && !found.is_empty() {
                return Err(place
                    .error("nothing is planted, and all clients are right: it passes, and nothing else is expected"));
            }
        }
        Ok(())
    }
}

/// How often a driver may try.
fn tries(line: &Line<'_>, word: Word<'_>) -> Result<usize, TextError> {
    let tries = word.text.parse().ok().filter(|tries| (1..=MOST_TRIES).contains(tries));
    tries.ok_or_else(|| line.error(word.column, format!("expected a number from 1 to {MOST_TRIES}")))
}

fn device_of(line: &Line<'_>, program: &Program, word: Word<'_>) -> Result<usize, TextError> {
    let device = program.devices.iter().position(|device| device.name == word.text);
    device.ok_or_else(|| line.error(word.column, format!("there is no device `{}`", word.text)))
}

/// `form NAME [without FLAG...]`
fn form(line: &Line<'_>, code: &str, name: Word<'_>, rest: &[Word<'_>]) -> Result<Form, TextError> {
    let unknown = |word: Word<'_>, what: &str, names: Vec<&str>| {
        line.error(word.column, format!("unknown {what} `{}`; there are: {}", word.text, names.join(", ")))
    };
    let known = Form::ALL.iter().find(|(one, _)| *one == name.text);
    let (_, mut form) =
        *known.ok_or_else(|| unknown(name, "form", Form::ALL.iter().map(|(name, _)| *name).collect()))?;
    match rest {
        [] => return Ok(form),
        [Word { text: "without", .. }, _, ..] => {}
        [Word { text: "without", .. }] => return Err(line.error(line.end(code), "expected what is left out")),
        [other, ..] => return Err(line.error(other.column, "expected `without`, and what is left out")),
    }
    for &word in &rest[1..] {
        let flag = FLAGS.iter().find(|(one, _)| *one == word.text);
        let (_, flag) = flag.ok_or_else(|| unknown(word, "thing", FLAGS.iter().map(|(name, _)| *name).collect()))?;
        *flag(&mut form) = false;
    }
    Ok(form)
}

/// What is wrong with a statement that is none.
fn wrong_statement(line: &Line<'_>, cell: &str, key: Word<'_>, rest: &[Word<'_>]) -> TextError {
    let takes = match key.text {
        "start" | "start-nonblock" => "the first and the last entry",
        "zap" | "clear" | "page-out" | "try-to-unmap" | "page-mkclean" | "protect" | "unprotect" | "flush-tlb"
        | "age" | "store" | "load" => "one entry",
        "set" => "an entry and a page",
        "copy" => "one page",
        "fault" | "write" | "read" => "a device and an entry",
        "register" | "unregister" | "get" | "put" | "free-device" => "one device",
        "move" => "a device, and the first and the last entry",
        "lock" | "unlock" => "one lock",
        "synchronize" | "evict" | "unlink-table" | "free-table" | "end" | "free" | "exit" | "mmgrab" | "mmdrop" => {
            "nothing"
        }
        _ => return line.error(key.column, format!("unknown statement `{}`; expected {STATEMENTS}", key.text)),
    };
    line.takes_one(cell, key, rest, takes)
}
