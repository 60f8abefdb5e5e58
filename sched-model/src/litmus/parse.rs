//! Litmus tests from text, line by line; every error with its place.

mod kernel;

use lazytlb_machine::text::{Line, Place, Word, kind, memory};
use lazytlb_machine::{Machine, MemoryModel};

use super::{Expectation, Litmus, LitmusError, Slow};
use crate::mistakes;
use crate::mutants::Mutant;
use crate::program::{InInterrupt, Program, Roam, Source, Statement, TaskDecl};
use crate::strategies::Rules;
use crate::well_formed::Misuse;

/// More than any search could come to the end of.
const MOST_MMS: usize = 16;
/// Likewise; a task is a bit in a word.
const MOST_TASKS: usize = 32;
/// What a machine can have; one is kept for the worker.
const MOST_PLACES: usize = Machine::MAX_PLACES - 1;
/// More than any search could come to the end of.
const MOST_EXECS: usize = 1000;
/// A CPU has so many vectors for them.
const MOST_ARRIVING: usize = 30;

/// Lines of the header that say all in one.
const ONCE: [&str; 6] = ["machine", "memory", "mutant", "bug", "roam", "cid"];

/// Where things were said that are checked at the end.
#[derive(Default)]
struct Places {
    /// The last line that says anything.
    last: Place,
    mms: Vec<Place>,
    /// Each CPU's statements.
    statements: Vec<Vec<Place>>,
    mutant: Place,
    roam: Place,
    /// The word `weak` behind `memory`.
    weak: Place,
    /// The machine of each `expect`.
    expected: Vec<Place>,
    /// Each `slow`.
    slow: Vec<Place>,
}

/// What has been read so far.
struct Reader {
    litmus: Litmus,
    /// `switch idle` is known only when all tasks are.
    columns: usize,
    in_header: bool,
    /// Which of [`ONCE`] have been.
    said: Vec<&'static str>,
    places: Places,
}

impl Litmus {
    /// Reads a litmus test.
    ///
    /// # Errors
    /// With line and column, if it is none.
    pub fn parse(text: &str) -> Result<Litmus, LitmusError> {
        let (first, lines) = Line::of_litmus(text)?;
        let places = Places { last: first.place(1), ..Places::default() };
        let litmus = Litmus::of(Program::default());
        let mut reader = Reader { litmus, columns: 0, in_header: true, said: Vec::new(), places };
        for line in lines {
            reader.line(&line)?;
        }
        reader.finish()
    }
}

impl Reader {
    fn line(&mut self, line: &Line<'_>) -> Result<(), LitmusError> {
        let (code, comment) = line.code();
        if let Some(comment) = comment
            && code.trim().is_empty()
            && self.in_header
            && self.litmus.program.name.is_empty()
        {
            self.litmus.about.push_str(comment.trim());
            self.litmus.about.push('\n');
        }
        if code.trim().is_empty() {
            return Ok(());
        }
        let first = line.words(code).next().expect("it is not empty");
        self.places.last = line.place(1);
        match first.text {
            "cpu" => self.columns(line, code),
            "allow" | "expect" | "forbid" => self.condition(line, code),
            _ if self.columns > 0 => self.row(line, code),
            _ => self.header(line, code),
        }
    }

    fn header(&mut self, line: &Line<'_>, code: &str) -> Result<(), LitmusError> {
        let mut words = line.words(code);
        let key = words.next().expect("it is not empty");
        let mut rest: Vec<Word<'_>> = words.collect();
        let missing = |what: &str| line.error(line.end(code), format!("expected {what} after `{}`", key.text));
        if let Some(&once) = ONCE.iter().find(|&&once| once == key.text) {
            if self.said.contains(&once) {
                return Err(line.error(key.column, format!("there is a line `{once}` already")));
            }
            self.said.push(once);
        }
        match key.text {
            "name" => {
                let [name] = rest[..] else { return Err(missing("one name")) };
                if !self.litmus.program.name.is_empty() {
                    return Err(line.error(name.column, format!("the test has a name, `{}`", self.litmus.program.name)));
                }
                self.litmus.program.name = name.text.to_owned();
            }
            "machine" | "memory" | "mm" | "word" | "spinlock" if rest.is_empty() => return Err(missing("a name")),
            "machine" => self.litmus.machines = line.parse_all(&rest, str::parse::<Rules>)?,
            "memory" => {
                self.litmus.memories = line.parse_all(&rest, memory)?;
                if let Some(weak) = rest.iter().find(|word| word.text == MemoryModel::Weak.name()) {
                    self.places.weak = line.place(weak.column);
                }
            }
            "mm" => {
                for word in &rest {
                    if self.litmus.program.mms.iter().any(|mm| mm == word.text) {
                        return Err(line.error(word.column, format!("there is an mm `{}` already", word.text)));
                    }
                    if self.litmus.program.mms.len() == MOST_MMS {
                        return Err(line.error(word.column, format!("a test has at most {MOST_MMS} mms")));
                    }
                    self.litmus.program.mms.push(word.text.to_owned());
                    self.places.mms.push(line.place(word.column));
                }
            }
            "user" | "kthread" => {
                let wanted = if key.text == "user" { 2 } else { 1 };
                if rest.len() != wanted {
                    return Err(missing(if wanted == 2 { "a task and its mm" } else { "one task" }));
                }
                let mm = if wanted == 2 { Some(self.mm(line, rest.remove(1))?) } else { None };
                let task = rest[0];
                if task.text == "idle" || self.task(task.text).is_some() {
                    return Err(line.error(task.column, format!("there is a task `{}` already", task.text)));
                }
                if self.litmus.program.tasks.len() == MOST_TASKS {
                    return Err(line.error(task.column, format!("a test has at most {MOST_TASKS} tasks")));
                }
                self.litmus.program.tasks.push(TaskDecl { name: task.text.to_owned(), mm });
            }
            "slow" => {
                if rest.is_empty() {
                    return Err(missing("strategies"));
                }
                self.litmus.slow.push(slow(line, code, &rest)?);
                self.places.slow.push(line.place(key.column));
            }
            "check" => match rest[..] {
                [Word { text: "active_mm", .. }] => self.litmus.program.checks_active_mm = true,
                [Word { text: "freeing-sleeps", .. }] => self.litmus.program.kernel.freeing_sleeps = true,
                [Word { text: "pinned-roots", .. }] => self.litmus.program.kernel.pins_roots = true,
                _ => return Err(missing("`active_mm`, `pinned-roots` or `freeing-sleeps`")),
            },
            "drop" | "relax" => {
                if rest.is_empty() {
                    return Err(missing("labels"));
                }
                let labels = if key.text == "drop" { &mut self.litmus.dropped } else { &mut self.litmus.relaxed };
                labels.extend(rest.iter().map(|word| word.text.to_owned()));
            }
            "mutant" => {
                let [mutant] = rest[..] else { return Err(missing("one mutant")) };
                self.litmus.mutant = Some(line.parse_one(mutant, str::parse)?);
                self.places.mutant = line.place(mutant.column);
            }
            "bug" => self.litmus.bug = Some(line.bug(code, &rest)?),
            "roam" => {
                self.litmus.program.roam = Some(Roam { execs: execs(line, &rest)? });
                self.places.roam = line.place(key.column);
            }
            _ if self.kernel_header(line, key, &rest)? => {}
            _ => {
                return Err(line.error(
                    key.column,
                    format!("`{}` is not known here; expected name, machine, memory, mm, user, kthread, roam, slow, word, spinlock, cid, check, drop, relax, mutant, bug, or cpu", key.text),
                ));
            }
        }
        Ok(())
    }

    fn mm(&self, line: &Line<'_>, word: Word<'_>) -> Result<usize, LitmusError> {
        let found = self.litmus.program.mms.iter().position(|mm| mm == word.text);
        found.ok_or_else(|| line.error(word.column, format!("there is no mm `{}`", word.text)))
    }

    fn task(&self, name: &str) -> Option<usize> {
        self.litmus.program.tasks.iter().position(|task| task.name == name)
    }

    /// `cpu TASK | cpu TASK`: what runs where at the start.
    fn columns(&mut self, line: &Line<'_>, code: &str) -> Result<(), LitmusError> {
        if self.columns > 0 {
            return Err(line.error(1, "the columns are named already"));
        }
        self.in_header = false;
        for cell in code.split('|') {
            let words: Vec<Word<'_>> = line.words(cell).collect();
            if let [Word { text: "walker", .. }, cpu] = words[..] {
                let cpus = self.litmus.program.start.len();
                let number = cpu.text.parse().ok().filter(|&number| number < cpus);
                let number =
                    number.ok_or_else(|| line.error(cpu.column, "expected the number of a CPU to the left"))?;
                if self.litmus.program.walkers.contains(&number) {
                    return Err(line.error(cpu.column, format!("CPU {number} has a walker already")));
                }
                self.litmus.program.walkers.push(number);
                self.columns += 1;
                continue;
            }
            let (words, isolated) = match words[..] {
                [key, task, Word { text: "isolated", .. }] => (vec![key, task], true),
                _ => (words, false),
            };
            if isolated {
                self.litmus.program.isolated.push(self.litmus.program.start.len());
            }
            let [key @ Word { text: "cpu", .. }, task] = words[..] else {
                return Err(line.error(line.end(cell), "expected `cpu` and the task that it runs at the start"));
            };
            if !self.litmus.program.walkers.is_empty() {
                return Err(line.error(key.column, "CPUs come before walkers"));
            }
            let start = match task.text {
                "idle" => None,
                name => {
                    let number = self.task(name);
                    Some(number.ok_or_else(|| line.error(task.column, format!("there is no task `{name}`")))?)
                }
            };
            if start.is_some() && self.litmus.program.start.contains(&start) {
                return Err(line.error(task.column, format!("`{}` runs on another CPU already", task.text)));
            }
            self.litmus.program.start.push(start);
            self.litmus.program.scripts.push(Vec::new());
            self.places.statements.push(Vec::new());
            self.columns += 1;
        }
        if self.columns > MOST_PLACES {
            return Err(line.error(1, format!("a machine has at most {MOST_PLACES} CPUs and walkers")));
        }
        Ok(())
    }

    fn row(&mut self, line: &Line<'_>, code: &str) -> Result<(), LitmusError> {
        for (cpu, cell) in code.split('|').enumerate() {
            let words: Vec<Word<'_>> = line.words(cell).collect();
            let Some(&first) = words.first() else { continue };
            if cpu >= self.columns {
                return Err(line.error(first.column, format!("there are only {} columns", self.columns)));
            }
            if cpu >= self.litmus.program.start.len() {
                return Err(line.error(first.column, "a walker has no script"));
            }
            let statement = self.statement(line, cell, cpu, &words)?;
            self.litmus.program.scripts[cpu].push(statement);
            self.places.statements[cpu].push(line.place(first.column));
            if self.litmus.program.arriving(cpu).len() > MOST_ARRIVING {
                return Err(line.error(first.column, format!("a CPU has at most {MOST_ARRIVING} interrupts")));
            }
        }
        Ok(())
    }

    fn statement(&self, line: &Line<'_>, cell: &str, cpu: usize, words: &[Word<'_>]) -> Result<Statement, LitmusError> {
        let key = words[0];
        if let Some(statement) = self.kernel_statement(line, cell, words)? {
            return Ok(statement);
        }
        let statement = match (key.text, &words[1..]) {
            ("switch", [task]) if task.text == "idle" => Statement::Switch(self.litmus.program.tasks.len() + cpu),
            ("switch", [task]) => match self.task(task.text) {
                Some(number) => Statement::Switch(number),
                None => return Err(line.error(task.column, format!("there is no task `{}`", task.text))),
            },
            ("switch", rest) => return Err(line.takes_one(cell, key, rest, "one task, or `idle`")),
            ("exit", []) => Statement::Exit,
            ("exec", [mm]) => Statement::Exec(self.mm(line, *mm)?),
            ("use", [mm]) => Statement::UseMm(self.mm(line, *mm)?),
            ("unuse", []) => Statement::UnuseMm,
            ("mmput", [mm]) => Statement::Mmput(self.mm(line, *mm)?),
            ("mmdrop", [mm]) => Statement::Mmdrop(self.mm(line, *mm)?),
            ("flush", [mm]) => Statement::Flush(self.mm(line, *mm)?, false),
            ("flush", [mm, Word { text: "freed", .. }]) => Statement::Flush(self.mm(line, *mm)?, true),
            ("munmap", [mm]) => Statement::Munmap(self.mm(line, *mm)?),
            ("unmap", [mm]) => Statement::Unmap(self.mm(line, *mm)?),
            ("revive", [mm]) => Statement::Revive(self.mm(line, *mm)?),
            ("access", []) => Statement::Access,
            ("exec" | "use" | "munmap" | "unmap" | "revive" | "mmput" | "mmdrop" | "flush", rest) => {
                return Err(line.takes_one(cell, key, rest, "one mm"));
            }
            ("look", []) => Statement::LookIntoActiveMm,
            ("offline", []) => Statement::Offline,
            ("online", []) => Statement::Online,
            ("deep-idle", []) => Statement::DeepIdle,
            ("goto", [number]) => match number.text.parse::<usize>() {
                Ok(target) if target >= 1 && target <= self.litmus.program.scripts[cpu].len() => {
                    Statement::Goto(target - 1)
                }
                _ => return Err(line.error(number.column, "expected the number of an earlier statement of this CPU")),
            },
            ("irq" | "softirq" | "nmi", what) => {
                let source = match key.text {
                    "irq" => Source::Irq,
                    "softirq" => Source::Softirq,
                    _ => Source::Nmi,
                };
                Statement::Interrupt(source, self.in_interrupt(line, cell, what)?)
            }
            ("preempt" | "migrate", [task]) => {
                let number = self.task(task.text);
                let number =
                    number.ok_or_else(|| line.error(task.column, format!("there is no task `{}`", task.text)))?;
                if key.text == "preempt" { Statement::Preempt(number) } else { Statement::Migrate(number) }
            }
            ("preempt" | "migrate", rest) => return Err(line.takes_one(cell, key, rest, "one task")),
            ("offline", [how, ..]) => {
                return Err(line.error(how.column, "expected nothing, or one of borrowing, first, looking-early"));
            }
            ("exit" | "unuse" | "access" | "look" | "online" | "deep-idle", [extra, ..]) => {
                return Err(line.error(extra.column, format!("`{}` takes nothing", key.text)));
            }
            _ => {
                return Err(line.error(
                    key.column,
                    format!(
                        "unknown statement `{}`; expected switch, exit, exec, use, unuse, mmput, mmdrop, flush, munmap, unmap, access, revive, look, offline, online, deep-idle, irq, softirq, nmi, preempt, migrate, goto, {}",
                        key.text,
                        kernel::STATEMENTS
                    ),
                ));
            }
        };
        Ok(statement)
    }

    /// What an interrupt does.
    fn in_interrupt(&self, line: &Line<'_>, cell: &str, words: &[Word<'_>]) -> Result<InInterrupt, LitmusError> {
        if let Some(what) = Self::kernel_interrupt(words) {
            return Ok(what);
        }
        match words {
            [Word { text: "look", .. }] => Ok(InInterrupt::LookIntoActiveMm),
            [Word { text: "mmput", .. }, mm] => Ok(InInterrupt::Mmput(self.mm(line, *mm)?)),
            [Word { text: "mmdrop", .. }, mm] => Ok(InInterrupt::Mmdrop(self.mm(line, *mm)?)),
            _ => {
                let column = words.first().map_or(line.end(cell), |first| first.column);
                Err(line.error(column, format!("expected look, mmput MM, mmdrop MM, {}", kernel::IN_INTERRUPT)))
            }
        }
    }

    fn condition(&mut self, line: &Line<'_>, code: &str) -> Result<(), LitmusError> {
        let mut words = line.words(code);
        let key = words.next().expect("it is not empty");
        let rest: Vec<Word<'_>> = words.collect();
        if key.text == "allow" {
            if rest.is_empty() {
                return Err(line.error(line.end(code), "expected what is allowed"));
            }
            self.litmus.allowed.extend(line.parse_all(&rest, kind)?);
            return Ok(());
        }
        if key.text == "forbid" {
            return self.forbid(line, &rest);
        }
        let [strategy, rules, kinds @ ..] = &rest[..] else {
            return Err(line.error(line.end(code), "expected a strategy, a machine, and what is found"));
        };
        self.places.expected.push(line.place(rules.column));
        self.litmus.expected.push(Expectation {
            strategy: line.parse_one(*strategy, str::parse)?,
            rules: line.parse_one(*rules, str::parse)?,
            kinds: line.parse_all(kinds, kind)?,
        });
        Ok(())
    }

    fn finish(mut self) -> Result<Litmus, LitmusError> {
        if self.litmus.program.name.is_empty() {
            return Err(self.places.last.error("the test has no name"));
        }
        if self.columns == 0 {
            let message = "the test has no CPUs: expected a line such as `cpu TASK | cpu idle`";
            return Err(self.places.last.error(message));
        }
        self.litmus.program = self.litmus.program.hold_what_is_put();
        if self.litmus.memories.is_empty() {
            // More CPUs have more to choose from under `weak` than a suite has time for; a test may ask for it. What a cached
            // translation is there nobody has said.
            let program = &self.litmus.program;
            let fits = program.cpus() <= 2 && !program.accesses() && program.roam.is_none();
            self.litmus.memories = MemoryModel::ALL.to_vec();
            self.litmus.memories.retain(|&memory| memory != MemoryModel::Weak || fits);
        }
        self.check_users()?;
        self.check_accesses()?;
        self.check_roam()?;
        self.check_mutant().map_err(|message| self.places.mutant.error(message))?;
        self.check_expectations()?;
        self.check_slow()?;
        self.check_scripts()?;
        Ok(self.litmus)
    }

    /// A rule with a step wrong is run under one strategy, in place of that rule.
    fn check_mutant(&self) -> Result<(), String> {
        let Some(mutant) = self.litmus.mutant.filter(|&mutant| mutant != Mutant::Caller) else { return Ok(()) };
        let Some(rules) = mutant.rules() else {
            return match self.litmus.machines.iter().find(|rules| !Rules::OF_MUTANTS.contains(rules)) {
                Some(rules) => Err(format!("mutant `{mutant}` is of a strategy and does not run on {rules}")),
                None => Ok(()),
            };
        };
        let strategy = mutant.strategy();
        let elsewhere = self.litmus.expected.iter().any(|one| one.strategy != strategy);
        if self.litmus.machines != [rules] || elsewhere {
            return Err(format!("mutant `{mutant}` is of {rules}: expected `machine {rules}`, and only `{strategy}`"));
        }
        Ok(())
    }

    /// What is expected must be looked at.
    fn check_expectations(&self) -> Result<(), LitmusError> {
        let Litmus { expected, machines, .. } = &self.litmus;
        for (index, (Expectation { strategy, rules, kinds }, place)) in
            expected.iter().zip(&self.places.expected).enumerate()
        {
            if !machines.contains(rules) {
                return Err(place.error(format!("the test is not for {rules}")));
            }
            if expected[..index].iter().any(|other| (other.strategy, other.rules) == (*strategy, *rules)) {
                return Err(place.error(format!("what is expected of {strategy} on {rules} was said before")));
            }
            if strategy.claims(*rules) && !kinds.is_empty() && !self.litmus.is_mutation() {
                return Err(place.error(format!("{strategy} claims {rules}: it passes, and nothing else is expected")));
            }
        }
        Ok(())
    }

    /// It is slow only where it is run.
    fn check_slow(&self) -> Result<(), LitmusError> {
        let Litmus { machines, memories, .. } = &self.litmus;
        for (slow, place) in self.litmus.slow.iter().zip(&self.places.slow) {
            if let Some(rules) = slow.machines.iter().find(|rules| !machines.contains(rules)) {
                return Err(place.error(format!("the test is not for {rules}")));
            }
            if let Some(memory) = slow.memories.iter().find(|memory| !memories.contains(memory)) {
                return Err(place.error(format!("the test is not for {memory}")));
            }
        }
        Ok(())
    }

    /// What a cached translation is under `weak` nobody has said.
    fn check_accesses(&self) -> Result<(), LitmusError> {
        if self.litmus.program.accesses() && self.litmus.memories.contains(&MemoryModel::Weak) {
            return Err(self
                .places
                .weak
                .error("`weak` knows no user accesses: `access` and `revive` are for sc and tso"));
        }
        Ok(())
    }

    /// Where tasks roam there are no scripts, and memory is ordered as the scheduler's queue is there.
    fn check_roam(&self) -> Result<(), LitmusError> {
        let (Litmus { program, memories, .. }, places) = (&self.litmus, &self.places);
        if program.roam.is_none() {
            return Ok(());
        }
        if program.scripts.iter().any(|script| !script.is_empty()) || program.start.iter().any(Option::is_some) {
            return Err(places.roam.error("where tasks roam, CPUs are `cpu idle` and have no statements"));
        }
        if program.tasks.is_empty() || program.mms.is_empty() {
            return Err(places.roam.error("nobody can roam without a task and an mm"));
        }
        if memories.contains(&MemoryModel::Weak) {
            return Err(places.weak.error("tasks roam under sc and tso only"));
        }
        Ok(())
    }

    /// A script must not be wrong in every execution, unless that is what the test is for.
    fn check_scripts(&self) -> Result<(), LitmusError> {
        if self.litmus.mutant == Some(Mutant::Caller) {
            return Ok(());
        }
        let Some(Misuse { place: Some((cpu, at)), why }) = mistakes::find(&self.litmus.program) else { return Ok(()) };
        Err(self.places.statements[cpu][at].error(why))
    }

    /// Every address space must come from somewhere: a task has it, a script holds it, or an exec makes it, once.
    fn check_users(&self) -> Result<(), LitmusError> {
        let program = &self.litmus.program;
        for (mm, name) in program.mms.iter().enumerate() {
            let execs = self.execs_of(mm);
            let declared = &self.places.mms[mm];
            let tasks = program.tasks.iter().filter(|task| task.mm == Some(mm)).count();
            let (users, references) = program.held[mm];
            match (&execs[..], tasks + users + references) {
                ([], 0) if program.roam.is_some() => {}
                ([], 0) => {
                    let message = "has no user: no task has it, no script holds it, no exec makes it";
                    return Err(declared.error(format!("mm `{name}` {message}")));
                }
                ([], _) if tasks + users == 0 => {
                    return Err(declared.error(format!("mm `{name}` has references but no user at the start")));
                }
                ([], _) | ([_], 0) => {}
                ([exec], _) => {
                    let message = "is made by an exec, so nobody can have it at the start";
                    return Err(exec.error(format!("mm `{name}` {message}")));
                }
                ([_, second, ..], _) => {
                    return Err(second.error(format!("mm `{name}` is made by more than one exec")));
                }
            }
        }
        Ok(())
    }

    /// Where an mm is made.
    fn execs_of(&self, mm: usize) -> Vec<&Place> {
        let scripts = self.litmus.program.scripts.iter().flatten();
        let all = scripts.zip(self.places.statements.iter().flatten());
        all.filter(|&(&statement, _)| statement == Statement::Exec(mm)).map(|(_, place)| place).collect()
    }
}

/// `slow STRATEGY... [on MACHINE...] [under MODEL...]`
fn slow(line: &Line<'_>, code: &str, words: &[Word<'_>]) -> Result<Slow, LitmusError> {
    let (words, memories) = behind(line, code, words, "under", "memory models")?;
    let (strategies, machines) = behind(line, code, words, "on", "machines")?;
    Ok(Slow {
        strategies: line.parse_all(strategies, str::parse)?,
        machines: line.parse_all(machines, str::parse)?,
        memories: line.parse_all(memories, memory)?,
    })
}

/// What is before a word, and what is behind it: something, if the word is there.
fn behind<'w, 'a>(
    line: &Line<'_>,
    code: &str,
    words: &'w [Word<'a>],
    key: &str,
    what: &str,
) -> Result<(&'w [Word<'a>], &'w [Word<'a>]), LitmusError> {
    let Some(at) = words.iter().position(|word| word.text == key) else { return Ok((words, &[])) };
    let (before, after) = (&words[..at], &words[at + 1..]);
    if before.is_empty() || after.is_empty() {
        let (column, what) = if before.is_empty() { (words[at].column, "strategies") } else { (line.end(code), what) };
        return Err(line.error(column, format!("expected {what}")));
    }
    Ok((before, after))
}

/// How many execs `roam` allows.
fn execs(line: &Line<'_>, rest: &[Word<'_>]) -> Result<Option<usize>, LitmusError> {
    match rest {
        [] => Ok(None),
        [execs] => match execs.text.parse() {
            Ok(execs @ 1..=MOST_EXECS) => Ok(Some(execs)),
            _ => Err(line.error(execs.column, format!("expected how many execs, 1 to {MOST_EXECS}"))),
        },
        [_, extra, ..] => Err(line.error(extra.column, "`roam` takes one number")),
    }
}
