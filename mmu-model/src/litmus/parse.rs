//! Litmus tests from text, line by line; every error with its place.

use std::collections::BTreeSet;

use lazytlb_machine::text::{Line, Place, TextError, Word};

use super::{Expectation, Litmus};
use crate::kernel::TABLE;
use crate::names::{Api, Arch, Mutant};
use crate::program::{Device, InInterrupt, Program, Source, Statement};
use crate::rules::{DEEPEST, Rule};
use crate::world::MOST_INTERRUPTS;

/// More than any search could come to the end of.
const MOST_TASKS: usize = 6;
/// Likewise.
const MOST_CPUS: usize = 8;
/// Likewise.
const MOST_NAMES: usize = 8;
/// Likewise.
const MOST_PREEMPTIONS: usize = 100;

/// Lines of the header that say all in one.
const ONCE: [&str; 7] = ["name", "cpus", "waiting", "preemptions", "at-most", "mutant", "bug"];

const STATEMENTS: &str = "enable, disable, pause, resume, flush, set, clear, look, protect, age, install, remove, free, read, touch, flush-tlb, \
    start, end, flush-secondary, use, lock, unlock, sleep, bh-disable, bh-enable, syscall-exit, irq, softirq";

/// What has been read so far.
struct Reader {
    litmus: Litmus,
    in_header: bool,
    has_cpus: bool,
    waiting: Vec<(String, Place)>,
    said: Vec<&'static str>,
    /// The last line that says anything.
    last: Place,
    /// Each `expect`.
    expected: Vec<Place>,
    cpus: Place,
    /// Each statement of each task.
    statements: Vec<Vec<Place>>,
}

impl Litmus {
    /// Whether a text is of this kind: its header has a line `lazy-mmu`.
    pub fn is_one(text: &str) -> bool {
        let mut header = Line::all(text).take_while(|line| !line.text.trim_start().starts_with("cpu "));
        header.any(|line| line.text.split_whitespace().next() == Some("lazy-mmu"))
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
            under: Vec::new(),
            mutant: None,
            bug: None,
            allowed: BTreeSet::new(),
            expected: Vec::new(),
        };
        let mut reader = Reader {
            litmus,
            in_header: true,
            has_cpus: false,
            waiting: Vec::new(),
            said: Vec::new(),
            last: first.place(1),
            expected: Vec::new(),
            cpus: Place::default(),
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
        match first.text {
            "task" => self.columns(line, code),
            "allow" => {
                for &word in &words[1..] {
                    self.litmus.allowed.insert(line.parse_one(word, Rule::found)?);
                }
                if words.len() == 1 { Err(line.error(line.end(code), "expected what is allowed")) } else { Ok(()) }
            }
            "expect" => self.expect(line, code, &words[1..]),
            _ if !self.in_header => self.row(line, code),
            _ => self.header(line, code, first, &words[1..]),
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
        let number = |most: usize| match rest {
            [word] => match word.text.parse() {
                Ok(number) if number <= most => Ok(number),
                _ => Err(line.error(word.column, format!("expected a number up to {most}"))),
            },
            _ => Err(missing("one number")),
        };
        let program = &mut self.litmus.program;
        match key.text {
            "name" => {
                let [name] = rest else { return Err(missing("one name")) };
                program.name = name.text.to_owned();
            }
            "lazy-mmu" => self.under(line, code, rest)?,
            "cpus" => {
                program.cpus = number(MOST_CPUS)?;
                (self.has_cpus, self.cpus) = (true, line.place(rest[0].column));
            }
            "preemptions" => program.preemptions = number(MOST_PREEMPTIONS)?,
            "at-most" => program.at_most = Some(number(usize::MAX)?),
            "waiting" | "pte" | "page" | "spinlock" if rest.is_empty() => return Err(missing("a name")),
            "waiting" => {
                self.waiting = rest.iter().map(|word| (word.text.to_owned(), line.place(word.column))).collect()
            }
            "pte" => {
                let table = program.tables.last().map_or(0, |last| last + 1);
                line.declare(&mut program.ptes, rest, "entry", TABLE)?;
                program.tables.resize(program.ptes.len(), table);
            }
            "page" => line.declare(&mut program.pages, rest, "page", MOST_NAMES)?,
            "spinlock" => line.declare(&mut program.locks, rest, "spinlock", MOST_NAMES)?,
            "device" => {
                let [name, kind] = *rest else { return Err(missing("a name, and `mirror` or `shared`")) };
                let mut names: Vec<String> = program.devices.iter().map(|device| device.name.clone()).collect();
                line.declare(&mut names, &[name], "device", MOST_NAMES)?;
                let is_shared = match kind.text {
                    "mirror" => false,
                    "shared" => true,
                    _ => return Err(line.error(kind.column, "expected `mirror` or `shared`")),
                };
                program.devices.push(Device { name: name.text.to_owned(), is_shared });
            }
            "map" => {
                let [pte, page] = *rest else { return Err(missing("an entry and a page")) };
                let mapped = (line.named(pte, &program.ptes, "entry")?, line.named(page, &program.pages, "page")?);
                if program.mapped.iter().any(|one| one.0 == mapped.0) {
                    return Err(line.error(pte.column, format!("`{}` maps a page already", pte.text)));
                }
                program.mapped.push(mapped);
            }
            "guard" => {
                let [lock, ptes @ ..] = rest else { return Err(missing("a spinlock and entries")) };
                if ptes.is_empty() {
                    return Err(missing("a spinlock and entries"));
                }
                let lock = line.named(*lock, &program.locks, "spinlock")?;
                program.guards.resize(program.ptes.len(), None);
                for &word in ptes {
                    let pte = line.named(word, &program.ptes, "entry")?;
                    if program.guards[pte].is_some() {
                        return Err(line.error(word.column, format!("`{}` has a lock already", word.text)));
                    }
                    program.guards[pte] = Some(lock);
                }
            }
            "check" => match rest {
                [Word { text: "locked", .. }] => program.guarded = true,
                _ => return Err(missing("`locked`")),
            },
            "mutant" => {
                let [mutant] = *rest else { return Err(missing("one mutant")) };
                self.litmus.mutant = Some(line.parse_one(mutant, str::parse::<Mutant>)?);
            }
            "bug" => self.litmus.bug = Some(line.bug(code, rest)?),
            _ => {
                let known = "name, lazy-mmu, cpus, waiting, preemptions, pte, page, map, spinlock, guard, check, at-most, mutant, bug, or task";
                return Err(line.error(key.column, format!("`{}` is not known here; expected {known}", key.text)));
            }
        }
        Ok(())
    }

    /// `lazy-mmu GENERATION... [on BACKEND...]`
    fn under(&mut self, line: &Line<'_>, code: &str, words: &[Word<'_>]) -> Result<(), TextError> {
        let on = words.iter().position(|word| word.text == "on");
        let (apis, archs) = words.split_at(on.unwrap_or(words.len()));
        if apis.is_empty() {
            return Err(line.error(line.end(code), "expected a generation of the API after `lazy-mmu`"));
        }
        let apis = line.parse_all(apis, str::parse::<Api>)?;
        let archs = match archs {
            [] => Arch::ALL.to_vec(),
            [on] => return Err(line.error(line.end(code), format!("expected a back end after `{}`", on.text))),
            [_, archs @ ..] => line.parse_all(archs, str::parse::<Arch>)?,
        };
        for api in apis {
            for &arch in &archs {
                if self.litmus.under.contains(&(api, arch)) {
                    return Err(line.error(1, format!("{api} on {arch} is there already")));
                }
                if arch == Arch::X5 && api != Api::Merged {
                    if on.is_none() {
                        continue;
                    }
                    return Err(line.error(1, format!("{arch} pauses tasks, which {api} cannot at a switch")));
                }
                self.litmus.under.push((api, arch));
            }
        }
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
            if self.litmus.program.interrupts().len() > MOST_INTERRUPTS {
                return Err(line.error(first.column, format!("a test has at most {MOST_INTERRUPTS} interrupts")));
            }
        }
        Ok(())
    }

    fn statement(&self, line: &Line<'_>, cell: &str, words: &[Word<'_>]) -> Result<Statement, TextError> {
        use Statement::*;
        let Program { locks, .. } = &self.litmus.program;
        let key = words[0];
        let rest = &words[1..];
        let pte = |word: &Word<'_>| self.pte(line, *word);
        let page = |word: &Word<'_>| self.page(line, *word);
        let statement = match (key.text, rest) {
            ("enable", []) => Enable,
            ("enable", [first, last]) if pte(first)? > pte(last)? => {
                return Err(line.error(last.column, "the last entry comes before the first"));
            }
            ("enable", [first, last]) => EnableWithPtes(pte(first)?, pte(last)?),
            ("enable", _) => return Err(line.error(line.end(cell), "expected nothing, or two entries")),
            ("disable", []) => Disable,
            ("pause", []) => Pause,
            ("resume", []) => Resume,
            ("flush", []) => Flush,
            ("set", [at, to]) => Set(pte(at)?, page(to)?),
            ("install", [at, to]) => Install(pte(at)?, page(to)?),
            ("set", [at, to, Word { text: "if-none", .. }]) => SetIfNone(pte(at)?, page(to)?),
            ("clear", [at, Word { text: "full", .. }]) => ClearFull(pte(at)?),
            ("look", [at]) => Look(pte(at)?),
            ("protect", [at, to]) => Protect(pte(at)?, page(to)?),
            ("protect", [at, to, Word { text: "by-store", .. }]) => ProtectByStore(pte(at)?, page(to)?),
            ("set" | "install" | "protect", [_, _, extra, ..]) => {
                return Err(line.error(extra.column, format!("`{}` is not known behind `{}`", extra.text, key.text)));
            }
            ("set" | "install" | "protect", _) => {
                return Err(line.error(line.end(cell), "expected an entry and a page"));
            }
            ("clear", [at]) => Clear(pte(at)?),
            ("flush-secondary", [at]) => FlushSecondary(pte(at)?),
            ("remove", [at]) => Remove(pte(at)?),
            ("free", []) => Free,
            ("read", [at]) => Read(pte(at)?),
            ("read", [at, Word { text: "raw", .. }]) => ReadRaw(pte(at)?),
            ("read", [at, Word { text: "lockless", .. }]) => ReadLockless(pte(at)?),
            ("touch", [at]) => Touch(pte(at)?),
            ("touch", [at, Word { text: "retrying", .. }]) => TouchRetrying(pte(at)?),
            ("age", [at]) => Age(pte(at)?),
            ("age", [at, Word { text: "by-store", .. }]) => AgeByStore(pte(at)?),
            ("clear" | "look" | "remove" | "read" | "touch" | "age" | "flush-secondary", _) => {
                return Err(line.takes_one(cell, key, rest, "one entry"));
            }
            ("flush-tlb", []) => FlushTlb,
            ("start", [first, last]) if pte(first)? > pte(last)? => {
                return Err(line.error(last.column, "the last entry comes before the first"));
            }
            ("start", [first, last]) => Start(pte(first)?, pte(last)?),
            ("start", _) => return Err(line.takes_one(cell, key, rest, "the first and the last entry")),
            ("end", []) => End,
            ("use", [device, at]) => {
                let index = self.litmus.program.devices.iter().position(|one| one.name == device.text);
                let index =
                    index.ok_or_else(|| line.error(device.column, format!("there is no device `{}`", device.text)))?;
                Use(index, pte(at)?)
            }
            ("use", _) => return Err(line.takes_one(cell, key, rest, "a device and an entry")),
            ("lock", [lock]) => Lock(line.named(*lock, locks, "spinlock")?),
            ("unlock", [lock]) => Unlock(line.named(*lock, locks, "spinlock")?),
            ("lock" | "unlock", _) => return Err(line.takes_one(cell, key, rest, "one spinlock")),
            ("sleep", []) => Sleep,
            ("sleep", [Word { text: "in-arch", .. }]) => SleepInArch,
            ("bh-disable", []) => BhDisable,
            ("bh-enable", []) => BhEnable,
            ("syscall-exit", []) => SyscallExit,
            ("irq", what) => Interrupt(Source::Irq, self.in_interrupt(line, cell, what)?),
            ("softirq", what) => Interrupt(Source::Softirq, self.in_interrupt(line, cell, what)?),
            (known, [extra, ..]) if STATEMENTS.split(", ").any(|one| one == known) => {
                return Err(line.error(extra.column, format!("`{}` is not known behind `{known}`", extra.text)));
            }
            _ => {
                let message = format!("unknown statement `{}`; expected {STATEMENTS}", key.text);
                return Err(line.error(key.column, message));
            }
        };
        Ok(statement)
    }

    fn in_interrupt(&self, line: &Line<'_>, cell: &str, words: &[Word<'_>]) -> Result<InInterrupt, TextError> {
        Ok(match words {
            [Word { text: "section", .. }, at, to] => InInterrupt::Section(self.pte(line, *at)?, self.page(line, *to)?),
            [Word { text: "set", .. }, at, to] => InInterrupt::Set(self.pte(line, *at)?, self.page(line, *to)?),
            [Word { text: "read", .. }, at] => InInterrupt::Read(self.pte(line, *at)?),
            [Word { text: "touch", .. }, at] => InInterrupt::Touch(self.pte(line, *at)?),
            [Word { text: "sleep", .. }] => InInterrupt::Sleep,
            _ => {
                let column = words.first().map_or(line.end(cell), |first| first.column);
                let known = "section PTE PAGE, set PTE PAGE, read PTE, touch PTE, or sleep";
                return Err(line.error(column, format!("expected {known}")));
            }
        })
    }

    fn pte(&self, line: &Line<'_>, word: Word<'_>) -> Result<usize, TextError> {
        line.named(word, &self.litmus.program.ptes, "entry")
    }

    fn page(&self, line: &Line<'_>, word: Word<'_>) -> Result<usize, TextError> {
        line.named(word, &self.litmus.program.pages, "page")
    }

    /// `expect GENERATION BACKEND FOUND...`
    fn expect(&mut self, line: &Line<'_>, code: &str, rest: &[Word<'_>]) -> Result<(), TextError> {
        let [api, arch, all @ ..] = rest else {
            return Err(line.error(line.end(code), "expected a generation, a back end, and what is found"));
        };
        self.expected.push(line.place(api.column));
        self.litmus.expected.push(Expectation {
            api: line.parse_one(*api, str::parse)?,
            arch: line.parse_one(*arch, str::parse)?,
            found: line.parse_all(all, Rule::found)?.into_iter().collect(),
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Litmus, TextError> {
        let program = &mut self.litmus.program;
        if program.name.is_empty() {
            return Err(self.last.error("the test has no name"));
        }
        if self.litmus.under.is_empty() {
            return Err(self.last.error("the test has no line `lazy-mmu`: expected one with a generation of the API"));
        }
        if self.in_header {
            return Err(self.last.error("the test has no tasks: expected a line such as `task TASK | task TASK`"));
        }
        for (name, place) in &self.waiting {
            let task = program.tasks.iter().position(|task| task == name);
            let task = task.ok_or_else(|| place.error(format!("there is no task `{name}`")))?;
            if program.waiting.contains(&task) {
                return Err(place.error(format!("`{name}` waits already")));
            }
            program.waiting.push(task);
        }
        // One lock guards all, if nothing else is said.
        let all = Some(0).filter(|_| program.locks.len() == 1 && program.guards.is_empty());
        program.guards.resize(program.ptes.len(), all);
        let unguarded = program.guards.iter().position(Option::is_none).filter(|_| program.guarded);
        if let Some(pte) = unguarded {
            let message = format!("no lock guards `{}`: expected a line `guard LOCK {0}`", program.ptes[pte]);
            return Err(self.last.error(message));
        }
        let running = program.first().count();
        if !self.has_cpus {
            program.cpus = running.max(1);
        } else if program.cpus < running || program.cpus == 0 {
            return Err(self.cpus.error(format!("{running} tasks do not wait, and each needs a CPU")));
        }
        self.check_scripts()?;
        self.check_expectations()?;
        Ok(self.litmus)
    }

    /// Locks are released by who has taken them, bottom halves enabled where they are disabled, invalidations do not nest, and what
    /// is open can be counted.
    fn check_scripts(&self) -> Result<(), TextError> {
        for (script, places) in self.litmus.program.scripts.iter().zip(&self.statements) {
            let (mut locked, mut bh, mut open, mut invalidates) = (Vec::new(), 0usize, 0usize, false);
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
                    Statement::Start(..) if invalidates => {
                        return Err(place.error("the task invalidates something already"));
                    }
                    Statement::End if !invalidates => return Err(place.error("the task has not begun to invalidate")),
                    Statement::Start(..) | Statement::End => invalidates = !invalidates,
                    Statement::BhDisable => bh += 1,
                    Statement::BhEnable if bh == 0 => {
                        return Err(place.error("the task has not disabled bottom halves"));
                    }
                    Statement::BhEnable => bh -= 1,
                    Statement::Enable | Statement::EnableWithPtes(..) | Statement::Pause if open == DEEPEST => {
                        let message = format!("no more than {DEEPEST} sections and pauses can be open");
                        return Err(place.error(message));
                    }
                    Statement::Enable | Statement::EnableWithPtes(..) | Statement::Pause => open += 1,
                    Statement::Disable | Statement::Resume => open = open.saturating_sub(1),
                    _ => {}
                }
            }
            if let Some(last) = places.last().filter(|_| !locked.is_empty() || bh > 0) {
                return Err(last.error("the script ends with a lock held, or with bottom halves disabled"));
            }
        }
        Ok(())
    }

    /// What is expected must be looked at.
    fn check_expectations(&self) -> Result<(), TextError> {
        let Litmus { expected, under, .. } = &self.litmus;
        for (index, (one, place)) in expected.iter().zip(&self.expected).enumerate() {
            let Expectation { api, arch, found } = one;
            if !under.contains(&(*api, *arch)) {
                return Err(place.error(format!("the test is not for {api} on {arch}")));
            }
            if expected[..index].iter().any(|other| (other.api, other.arch) == (*api, *arch)) {
                return Err(place.error(format!("what is expected of {api} on {arch} was said before")));
            }
            if api.claims(*arch) && !found.is_empty() && !self.litmus.is_mutation() {
                return Err(place.error(format!("{api} claims {arch}: it passes, and nothing else is expected")));
            }
        }
        Ok(())
    }
}
