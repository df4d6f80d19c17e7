//! The commands in the documents for users are commands of this program.

use clap::Parser;
use clap::error::ErrorKind;

use super::Cli;

/// The documents: name and text.
const DOCUMENTS: [(&str, &str); 6] = [
    ("README.md", include_str!("../../README.md")),
    ("docs/alerts.md", include_str!("../../docs/alerts.md")),
    ("docs/density-policy.md", include_str!("../../docs/density-policy.md")),
    ("docs/security.md", include_str!("../../docs/security.md")),
    ("docs/two-hosts.md", include_str!("../../docs/two-hosts.md")),
    ("docs/user-guide.md", include_str!("../../docs/user-guide.md")),
];

/// Splits a document into its code, with continued lines joined, and its prose.
fn parts(document: &str) -> (String, String) {
    let (mut code, mut prose) = (String::new(), String::new());
    let mut is_fenced = false;
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            continue;
        }
        let part = if is_fenced || line.starts_with("    ") { &mut code } else { &mut prose };
        part.push_str(line.trim());
        part.push('\n');
    }
    (code.replace("\\\n", ""), prose)
}

fn is_command(text: &&str) -> bool {
    let mut words = text.split_whitespace();
    words.next() == Some("lighter") && words.next().is_some()
}

/// A line without its prompt.
fn typed(line: &str) -> &str {
    match line.split_once(' ') {
        Some((prompt, typed)) if prompt.ends_with(['#', '$']) => typed,
        _ => line,
    }
}

/// The commands in code; several in a line are far apart.
fn in_code(code: &str) -> impl Iterator<Item = &str> {
    code.lines().flat_map(|line| typed(line).split("   ")).map(str::trim).filter(is_command)
}

/// The commands in prose, between backticks.
fn in_prose(prose: &str) -> impl Iterator<Item = &str> {
    prose.split('`').skip(1).step_by(2).filter(is_command)
}

/// The words of a command as a shell splits them, without a comment, a pipe or a redirection.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '|' | '<' | '>' | '&') => break,
            (None, '#') if word.is_none() => break,
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn a_command_is_split_as_in_a_shell() {
    let command = "lighter run --cmdline 'console=ttyS0 rw' --kernel \"/v-$(uname -r)\" # boots";
    let expected =
        ["lighter", "run", "--cmdline", "console=ttyS0 rw", "--kernel", "/v-$(uname -r)"];
    assert_eq!(words(command), expected);
    assert_eq!(words("lighter console w1 < /dev/null | tee log"), ["lighter", "console", "w1"]);
}

#[test]
fn each_command_in_the_documents_is_one_of_this_program() {
    let mut count = 0;
    for (name, document) in DOCUMENTS {
        let (code, prose) = parts(document);
        for command in in_code(&code) {
            let error = Cli::try_parse_from(words(command)).err().map(|error| error.to_string());
            // An ellipsis stands for the rest of a value.
            assert!(error.is_none() || command.contains('…'), "{name}: {command}: {error:?}");
            count += 1;
        }
        for command in in_prose(&prose) {
            let error = Cli::try_parse_from(words(command)).err().map(|error| error.kind());
            // Prose leaves out what it does not speak of, and writes NAME for a value.
            let is_unknown =
                matches!(error, Some(ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand));
            assert!(!is_unknown, "{name}: {command}: {error:?}");
            count += 1;
        }
    }
    assert!(count > 150, "only {count} commands were found");
}
