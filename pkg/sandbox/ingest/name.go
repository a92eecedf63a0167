package ingest

import (
	"cmp"
	"regexp"
	"strconv"
	"time"
)

// fileName is what the name of a segment file says.
type fileName struct {
	Domain string `json:"domain"`
	Date   string `json:"date"`
	Number int    `json:"number"` // 0 when the name has none
}

var nameForm = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*)_subscriber_segment_([0-9]{8})(?:_([0-9]{1,9}))?\.csv(?:\.pgp|\.gpg)?$`)

// parseName reads {clientdomain}_subscriber_segment_{YYYYMMDD}[_{n}].csv, perhaps
// with .pgp or .gpg behind it.
func parseName(name string) (fileName, bool) {
	m := nameForm.FindStringSubmatch(name)
	if m == nil {
		return fileName{}, false
	}
	if _, err := time.Parse("20060102", m[2]); err != nil {
		return fileName{}, false
	}
	n, _ := strconv.Atoi(m[3]) // at most nine digits, or none
	return fileName{m[1], m[2], n}, true
}

// continues says whether a file may hold the next part of what began in another.
func (n fileName) continues(before fileName) bool {
	return n.Domain == before.Domain && n.Date == before.Date && n.Number > before.Number
}

func compareNames(a, b string) int {
	x, _ := parseName(a)
	y, _ := parseName(b)
	return cmp.Or(cmp.Compare(x.Date, y.Date), cmp.Compare(x.Domain, y.Domain), cmp.Compare(x.Number, y.Number), cmp.Compare(a, b))
}
