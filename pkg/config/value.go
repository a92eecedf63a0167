package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxEntries of lists and mappings are room for thousands of destinations.
const maxEntries = 250_000

// reader reads one file and collects what is wrong with it. Its methods return
// zero values for what they could not read, and never stop at a fault.
type reader struct {
	path     string // of the file
	faults   Faults
	warnings Faults
	entries  int        // of all lists and mappings read so far
	seen     []observed // files that the configuration depends on, as they were before they were read
}

// value is a node of the file with the path that leads to it.
type value struct {
	r    *reader
	node *yaml.Node
	path string
}

func (r *reader) value(node *yaml.Node, path string) value {
	// An alias stands for its anchor. It may lead back to a list or mapping that
	// contains it; that is harmless, since reading goes only as deep as the
	// configuration's own structure.
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return value{r, node, path}
}

func (v value) fault(problem, remedy string) {
	v.r.faults = append(v.r.faults, v.finding(problem, remedy))
}

func (v value) warn(problem, remedy string) {
	v.r.warnings = append(v.r.warnings, v.finding(problem, remedy))
}

func (v value) finding(problem, remedy string) Fault {
	return Fault{v.r.path, max(v.node.Line, 1), max(v.node.Column, 1), v.path, problem, remedy}
}

// is describes the node for people without showing it: it may be a secret.
func (v value) is() string {
	switch v.node.Kind {
	case yaml.MappingNode:
		return "is a mapping"
	case yaml.SequenceNode:
		return "is a list"
	}
	switch v.node.ShortTag() {
	case "!!null":
		return "has no value"
	case "!!bool":
		return "is true or false"
	case "!!int", "!!float":
		return "is a number"
	case "!!timestamp":
		return "is a date"
	}
	return "is a text"
}

// unlike faults the node for not being what is wanted.
func (v value) unlike(wanted, remedy string) {
	if v.scalar("!!null") {
		remedy = "give it a value, or remove the key"
	}
	v.fault(v.is()+", want "+wanted, remedy)
}

// scalar reports whether the node is a scalar with one of the tags.
func (v value) scalar(tags ...string) bool {
	return v.node.Kind == yaml.ScalarNode && slices.Contains(tags, v.node.ShortTag())
}

// list returns the elements, none when the node is no list.
func (v value) list() []value {
	if v.node.Kind != yaml.SequenceNode {
		v.unlike("a list", `write "- ..." for each element, or [] for none`)
		return nil
	}
	if !v.affordable() {
		return nil
	}
	elements := make([]value, len(v.node.Content))
	for i, node := range v.node.Content {
		elements[i] = v.r.value(node, fmt.Sprintf("%s[%d]", v.path, i))
	}
	return elements
}

// affordable reports whether the elements of the node may still be read. Aliases
// can make a few lines stand for more than any memory holds.
func (v value) affordable() bool {
	before := v.r.entries
	v.r.entries += len(v.node.Content)
	if v.r.entries <= maxEntries {
		return true
	}
	if before <= maxEntries {
		v.fault(fmt.Sprintf("is more than this file may hold: %d entries, aliases counted each time", maxEntries), "use fewer aliases")
	}
	return false
}

// mapping is a node with keys. Asked for a key it learns that the key exists in
// the configuration's structure; done faults all others. A nil mapping could
// not be read: it has no keys, and none is missing from it.
type mapping struct {
	value
	entries []entry
	known   []string
}

type entry struct {
	key   string
	name  value // the key itself
	value value
}

// mapping returns the keys and values, nil when the node is no mapping.
func (v value) mapping() *mapping {
	if v.node.Kind != yaml.MappingNode {
		v.unlike("a mapping", `write "key: value" lines, indented below the key`)
		return nil
	}
	if !v.affordable() {
		return nil
	}
	m := &mapping{value: v}
	first := make(map[string]int)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		name := v.r.value(v.node.Content[i], v.path)
		if name.node.Kind != yaml.ScalarNode {
			name.fault("has a key that "+name.is(), "write a word before the colon; put a text with braces in quotes")
			continue
		}
		key := name.node.Value
		path := key
		if v.path != "" {
			path = v.path + "." + key
		}
		name.path = path
		if line, again := first[key]; again {
			name.fault(fmt.Sprintf("is there already, in line %d", line), "remove one of the two")
			continue
		}
		first[key] = name.node.Line
		m.entries = append(m.entries, entry{key, name, v.r.value(v.node.Content[i+1], path)})
	}
	return m
}

// lookup returns the value of the key, if it is there.
func (m *mapping) lookup(key string) (value, bool) {
	if m == nil {
		return value{}, false
	}
	if !slices.Contains(m.known, key) {
		m.known = append(m.known, key)
	}
	i := slices.IndexFunc(m.entries, func(e entry) bool { return e.key == key })
	if i < 0 {
		return value{}, false
	}
	return m.entries[i].value, true
}

// has reports whether the key is there.
func (m *mapping) has(key string) bool {
	_, ok := m.lookup(key)
	return ok
}

// missing faults the mapping for the lack of a key.
func (m *mapping) missing(key, remedy string) {
	if m != nil {
		m.fault(fmt.Sprintf("has no key %q", key), remedy)
	}
}

// done faults each key that nobody has asked for.
func (m *mapping) done() {
	if m == nil {
		return
	}
	for _, e := range m.entries {
		if !slices.Contains(m.known, e.key) {
			e.name.fault("unknown key", suggest(e.key, m.known, "remove it"))
		}
	}
}

// get reads the value of an optional key; without it the result is fallback.
func get[T any](m *mapping, key string, fallback T, read func(value) T) T {
	v, ok := m.lookup(key)
	if !ok {
		return fallback
	}
	return read(v)
}

// need reads the value of a required key. The remedy is for its absence.
func need[T any](m *mapping, key, remedy string, read func(value) T) T {
	v, ok := m.lookup(key)
	if !ok {
		m.missing(key, remedy)
		var zero T
		return zero
	}
	return read(v)
}

// listOf returns a read of lists from a read of their elements.
func listOf[T any](read func(value) T) func(value) []T {
	return func(v value) []T {
		var all []T
		for _, element := range v.list() {
			all = append(all, read(element))
		}
		return all
	}
}

// someOf returns a read of lists that have at least one element.
func someOf[T any](read func(value) T, remedy string) func(value) []T {
	return func(v value) []T {
		if v.node.Kind == yaml.SequenceNode && len(v.node.Content) == 0 {
			v.fault("is an empty list", remedy)
		}
		return listOf(read)(v)
	}
}

// suggest returns a remedy for a word that is none of the known: the one it is
// probably meant to be, else what else to do and all that are known.
func suggest(word string, known []string, otherwise string) string {
	best, distance := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := edits(word, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(known) == 0 {
		return otherwise
	}
	return otherwise + "; known are " + strings.Join(slices.Compact(slices.Sorted(slices.Values(known))), ", ")
}

// edits counts the insertions, deletions, replacements and swaps of neighbours
// that make b of a. It is quick to give up: words of more than 64 bytes are far
// from everything.
func edits(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	var before []int // the row before previous
	previous := make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(previous[j]+cost, previous[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, previous = previous, row
	}
	return previous[len(b)]
}
