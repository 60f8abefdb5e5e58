//! Programs as text: lines, words with their places, and errors with theirs.

use core::fmt;

use crate::machine::MemoryModel;
use crate::verdict::Kind;

/// A text that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The text of the line.
    pub text: String,
}

impl TextError {
    /// The error with the name of the file before it, and the place shown.
    pub fn in_file(&self, file: &str) -> String {
        let TextError { line, column, message, text } = self;
        format!("{file}:{line}:{column}: {message}\n    {text}\n    {:>column$}", "^")
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}

impl core::error::Error for TextError {}

/// A word of a line, with where it begins.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    /// The word.
    pub text: &'a str,
    /// Its first column, from 1.
    pub column: usize,
}

/// A line.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// From 1.
    pub number: usize,
    /// All of it.
    pub text: &'a str,
}

/// The first line of every litmus test.
pub const MAGIC: &str = "lazytlb-litmus 1";

/// A place that may turn out to be wrong when all has been read.
#[derive(Clone, Default, Debug)]
pub struct Place {
    line: usize,
    column: usize,
    text: String,
}

impl Place {
    /// It is wrong.
    pub fn error(&self, message: impl Into<String>) -> TextError {
        let Place { line, column, text } = self.clone();
        TextError { line, column, message: message.into(), text }
    }
}

impl<'a> Line<'a> {
    /// The lines of a text.
    pub fn all(text: &'a str) -> impl Iterator<Item = Line<'a>> {
        text.lines().enumerate().map(|(index, text)| Line { number: index + 1, text })
    }

    /// The lines of a litmus test: the first one, which says that it is one, and those behind it.
    ///
    /// # Errors
    /// If it does not.
    pub fn of_litmus(text: &'a str) -> Result<(Line<'a>, impl Iterator<Item = Line<'a>>), TextError> {
        let mut lines = Line::all(text);
        let first = lines.next().unwrap_or(Line { number: 1, text: "" });
        if first.text.trim_end() != MAGIC {
            return Err(first.error(1, format!("not a litmus test of this version: expected `{MAGIC}`")));
        }
        Ok((first, lines))
    }

    /// A known bug, behind `bug`: its number, and its title of one word or more. `code` is the line without its comment.
    ///
    /// # Errors
    /// If either is missing.
    pub fn bug(&self, code: &str, words: &[Word<'_>]) -> Result<(String, String), TextError> {
        let missing = |what: &str| self.error(self.end(code), format!("expected {what} after `bug`"));
        let [number, title @ ..] = words else { return Err(missing("a number and a title")) };
        if title.is_empty() {
            return Err(missing("a title"));
        }
        let title: Vec<&str> = title.iter().map(|word| word.text).collect();
        Ok((number.text.to_owned(), title.join(" ")))
    }

    /// A place in it.
    pub fn place(&self, column: usize) -> Place {
        // A tab is one column wide here, so that the caret stands right.
        Place { line: self.number, column, text: self.text.replace('\t', " ") }
    }

    /// It is wrong at a column.
    pub fn error(&self, column: usize, message: impl Into<String>) -> TextError {
        self.place(column).error(message)
    }

    /// What is before a `#`, and what is behind it, if there is one.
    pub fn code(&self) -> (&'a str, Option<&'a str>) {
        match self.text.split_once('#') {
            Some((code, comment)) => (code, Some(comment)),
            None => (self.text, None),
        }
    }

    /// The words of a part of the line; `part` is a slice of it.
    pub fn words(&self, part: &'a str) -> impl Iterator<Item = Word<'a>> + use<'a> {
        let (text, start) = (self.text, self.text.as_ptr().addr());
        let (mut counted, mut column) = (0, 1);
        part.split_whitespace().map(move |word| {
            let begins = word.as_ptr().addr() - start;
            column += text[counted..begins].chars().count();
            counted = begins;
            Word { text: word, column }
        })
    }

    /// New names, each once, and no more than some.
    ///
    /// # Errors
    /// With the place of the name that is one too many.
    pub fn declare(
        &self,
        names: &mut Vec<String>,
        words: &[Word<'_>],
        what: &str,
        most: usize,
    ) -> Result<(), TextError> {
        for word in words {
            if names.iter().any(|name| name == word.text) {
                return Err(self.error(word.column, format!("there is `{}` already", word.text)));
            }
            if names.len() == most {
                return Err(self.error(word.column, format!("no more than {most} of `{what}` fit into a test")));
            }
            names.push(word.text.to_owned());
        }
        Ok(())
    }

    /// The column right behind a part.
    pub fn end(&self, part: &str) -> usize {
        let bytes = part.as_ptr().addr() + part.trim_end().len() - self.text.as_ptr().addr();
        self.text[..bytes].chars().count() + 1
    }

    /// What a word says.
    ///
    /// # Errors
    /// With the place of the word, if it says nothing of the kind.
    pub fn parse_one<T, E: fmt::Display>(
        &self,
        word: Word<'_>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, TextError> {
        parse(word.text).map_err(|error| self.error(word.column, error.to_string()))
    }

    /// What each word says, none of which may say what another one has said.
    ///
    /// # Errors
    /// As [`parse_one`](Self::parse_one).
    pub fn parse_all<T: PartialEq, E: fmt::Display>(
        &self,
        words: &[Word<'_>],
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, TextError> {
        let mut all = Vec::new();
        for &word in words {
            let one = self.parse_one(word, &parse)?;
            if all.contains(&one) {
                return Err(self.error(word.column, format!("`{}` is there already", word.text)));
            }
            all.push(one);
        }
        Ok(all)
    }

    /// The number of a name in a list of what has been declared as `what`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn named(&self, word: Word<'_>, names: &[String], what: &str) -> Result<usize, TextError> {
        let found = names.iter().position(|name| name == word.text);
        found.ok_or_else(|| self.error(word.column, format!("there is no {what} `{}`", word.text)))
    }

    /// What is wrong behind a statement that takes one word: there is none, or one more than is known.
    pub fn takes_one(&self, cell: &str, key: Word<'_>, rest: &[Word<'_>], what: &str) -> TextError {
        match rest {
            [_, .., extra] => self.error(extra.column, format!("`{}` is not known behind `{}`", extra.text, key.text)),
            _ => self.error(self.end(cell), format!("expected {what}")),
        }
    }
}

/// Columns of cells as lines, as wide as what is in them.
///
/// # Errors
/// Those of the formatter.
pub fn write_columns(f: &mut impl fmt::Write, columns: &[Vec<String>]) -> fmt::Result {
    let width = |column: &Vec<String>| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let rows = columns.iter().map(Vec::len).max().unwrap_or(0);
    for row in 0..rows {
        let cell = |column: &Vec<String>| format!("{:1$}", column.get(row).map_or("", |cell| cell), width(column));
        let cells: Vec<String> = columns.iter().map(cell).collect();
        writeln!(f, "{}", cells.join(" | ").trim_end())?;
    }
    Ok(())
}

/// A key with its words as a line; nothing if there are none.
///
/// # Errors
/// Those of the formatter.
pub fn write_line<T: fmt::Display>(
    f: &mut impl fmt::Write,
    key: &str,
    words: impl IntoIterator<Item = T>,
) -> fmt::Result {
    let words: Vec<String> = words.into_iter().map(|word| word.to_string()).collect();
    if words.is_empty() { Ok(()) } else { writeln!(f, "{key} {}", words.join(" ")) }
}

/// A memory model by its name.
///
/// # Errors
/// If there is none of this name.
pub fn memory(name: &str) -> Result<MemoryModel, String> {
    let found = MemoryModel::ALL.into_iter().find(|memory| memory.name() == name);
    found.ok_or_else(|| format!("unknown memory model `{name}`; there are: sc, tso, weak"))
}

/// A verdict by its name.
///
/// # Errors
/// If there is none of this name.
pub fn kind(name: &str) -> Result<Kind, String> {
    let found = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("unknown verdict `{name}`; there are: {}", known.join(", "))
    })
}
