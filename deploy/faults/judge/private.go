package judge

import (
	"regexp"
	"strings"
)

// private judges that nothing that people read names anybody who was published:
// logs, and why something is a dead letter. An error can hold the address of the
// call that failed, and so a phone.
func (v *Verdict) private(e Evidence) {
	somebody := regexp.MustCompile(`(\+|%2B)1\d{10}|\bp21\d-\d+-\d+(@|%40)|\bc21\d-\d{1,2}-\d{1,3}\b`)
	for replica, text := range e.Logs {
		for line := range strings.Lines(text) {
			v.Counts["log lines"]++
			if somebody.MatchString(line) {
				v.add(Private, "%s has logged: %s", replica, strings.TrimSpace(line))
			}
		}
	}
	for _, l := range e.Dead {
		if somebody.MatchString(l.Detail) {
			v.add(Private, "a dead letter of %s says: %s", l.Destination, l.Detail)
		}
	}
}
