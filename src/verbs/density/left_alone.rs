//! Groups guests that are left alone by the reason, so that a hundred of them take one line.

/// Most names of guests that are listed with one reason.
const NAMES_MAX: usize = 5;

/// Collects the second values of all pairs with the same first one; both in the order of their
/// first appearance.
pub(super) fn grouped<K: PartialEq, V>(
    pairs: impl IntoIterator<Item = (K, V)>,
) -> Vec<(K, Vec<V>)> {
    let mut groups: Vec<(K, Vec<V>)> = Vec::new();
    for (key, value) in pairs {
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => groups.push((key, vec![value])),
        }
    }
    groups
}

/// Lists names, as in `web-1, web-2 and 14 more`.
pub(super) fn listed(names: &[String]) -> String {
    if names.len() <= NAMES_MAX {
        return names.join(", ");
    }
    let (first, rest) = names.split_at(NAMES_MAX - 1);
    format!("{} and {} more", first.join(", "), rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_the_order_of_what_they_contain() {
        let pairs = [("b", 1), ("a", 2), ("b", 3)];
        assert_eq!(grouped(pairs), [("b", vec![1, 3]), ("a", vec![2])]);
    }

    #[test]
    fn only_the_first_of_many_names_are_listed() {
        let names: Vec<String> = (1..=20).map(|index| format!("w{index}")).collect();
        assert_eq!(listed(&names[..2]), "w1, w2");
        assert_eq!(listed(&names[..5]), "w1, w2, w3, w4, w5");
        assert_eq!(listed(&names), "w1, w2, w3, w4 and 16 more");
    }
}
