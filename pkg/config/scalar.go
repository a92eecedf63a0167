package config

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxTextLength is more characters than any setting needs.
const maxTextLength = 4096

// text reads any text that is not empty and has no control characters.
func text(v value) string {
	s := anyText(v)
	if s == "" && v.scalar("!!str") && v.node.Value == "" {
		v.fault("is empty", "write a text, or remove the key")
	}
	return s
}

// anyText reads a text that may be empty.
func anyText(v value) string {
	if !v.scalar("!!str") {
		v.unlike("a text", "write it in quotes")
		return ""
	}
	s := v.node.Value
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		v.fault("has a control character", "write it on one line, without tabs")
		return ""
	}
	if n := utf8.RuneCountInString(s); n > maxTextLength {
		v.fault(fmt.Sprintf("has %d characters", n), fmt.Sprintf("write at most %d", maxTextLength))
		return ""
	}
	return s
}

// matching reads texts that the whole of the pattern matches. The remedy says
// which these are.
func matching(pattern *regexp.Regexp, remedy string) func(value) string {
	return func(v value) string {
		s := text(v)
		if s != "" && !pattern.MatchString(s) {
			v.fault(fmt.Sprintf("is %q", s), remedy)
			return ""
		}
		return s
	}
}

// choice reads one of a few words.
func choice[T ~string](words ...T) func(value) T {
	known := make([]string, len(words))
	for i, w := range words {
		known[i] = string(w)
	}
	return func(v value) T {
		s := text(v)
		if s != "" && !slices.Contains(known, s) {
			v.fault(fmt.Sprintf("is %q", s), suggest(s, known, "choose another"))
			return ""
		}
		return T(s)
	}
}

// boolean reads true or false.
func boolean(v value) bool {
	if !v.scalar("!!bool") {
		v.unlike("true or false", "write true or false, without quotes")
		return false
	}
	return strings.EqualFold(v.node.Value, "true")
}

// whole reads whole numbers.
func whole(least, most int) func(value) int {
	return func(v value) int {
		remedy := fmt.Sprintf("write a whole number from %d to %d", least, most)
		if !v.scalar("!!int") {
			v.unlike("a whole number", remedy)
			return 0
		}
		n, err := strconv.Atoi(v.node.Value)
		if err != nil || n < least || n > most {
			v.fault("is "+v.node.Value, remedy)
			return 0
		}
		return n
	}
}

// oneOf reads one of a few whole numbers above zero.
func oneOf(numbers ...int) func(value) int {
	within := whole(slices.Min(numbers), slices.Max(numbers))
	return func(v value) int {
		n := within(v)
		if n != 0 && !slices.Contains(numbers, n) {
			v.fault("is "+v.node.Value, "choose one of "+strings.Trim(fmt.Sprint(numbers), "[]"))
			return 0
		}
		return n
	}
}

// share reads a number from 0 to 1.
func share(v value) float64 {
	const remedy = "write a share from 0 to 1, as 0.1 for a tenth"
	if !v.scalar("!!int", "!!float") {
		v.unlike("a number", remedy)
		return 0
	}
	f, err := strconv.ParseFloat(v.node.Value, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > 1 {
		v.fault("is "+v.node.Value, remedy)
		return 0
	}
	return f
}

// duration reads a number with a unit (90s, 1h30m), or whole days (7d).
func duration(least, most time.Duration) func(value) time.Duration {
	return func(v value) time.Duration {
		remedy := fmt.Sprintf("write a number and a unit (s, m, h or d), from %s to %s", short(least), short(most))
		if v.scalar("!!int", "!!float") {
			v.fault("is a number without a unit", remedy)
			return 0
		}
		s := text(v)
		if s == "" {
			return 0
		}
		d, err := parseDuration(s)
		if err != nil || d < least || d > most {
			v.fault(fmt.Sprintf("is %q", s), remedy)
			return 0
		}
		return d
	}
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16) // 179 years at most
		return time.Duration(n) * day, err
	}
	return time.ParseDuration(s)
}

// short writes a duration as people do: 7d, 1h, 1m.
func short(d time.Duration) string {
	if d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// file reads the path of a file that exists, relative to the configuration.
func file(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	path := v.r.resolve(s)
	v.r.depend(path)
	info, err := os.Stat(path)
	switch {
	case err != nil:
		v.fault(fmt.Sprintf("cannot use the file: %v", err), "create it, or name another; relative paths begin at the configuration's folder")
		return ""
	case !info.Mode().IsRegular():
		v.fault(fmt.Sprintf("%q is not a file", path), "name a file")
		return ""
	}
	return path
}

// resolve returns the path, which is relative to the configuration's folder.
func (r *reader) resolve(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(r.path), path)
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// secret reads a reference. Nothing of what stands there is ever shown but the
// name of a file: it may be the secret itself.
func secret(v value) Secret {
	const remedy = "write {file: PATH} or {env: NAME}, and keep the secret there"
	if v.scalar("!!str", "!!int", "!!float", "!!binary") {
		v.fault("is a secret written into the file", remedy)
		return Secret{}
	}
	m := v.mapping()
	f, isFile := m.lookup("file")
	e, isEnv := m.lookup("env")
	m.done()
	var s Secret
	switch {
	case m == nil:
		return Secret{}
	case isFile == isEnv:
		v.fault("names not exactly one of file and env", remedy)
		return Secret{}
	case isEnv && (!e.scalar("!!str") || !envName.MatchString(e.node.Value)):
		e.fault("is not the name of an environment variable", "write letters, digits and underscores; the secret itself is the variable's value")
		return Secret{}
	case isEnv:
		s = EnvSecret(e.node.Value)
	default:
		path := text(f)
		if path == "" {
			return Secret{}
		}
		path = v.r.resolve(path)
		v.r.depend(path)
		s = FileSecret(path)
	}
	if _, err := s.Value(); err != nil {
		v.warn(err.Error(), "until then what needs it is blocked")
	}
	return s
}
