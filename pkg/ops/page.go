package ops

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"time"
)

// pageHTML is the page at /: all of it in one answer, nothing from elsewhere.
//
//go:embed page.html
var pageHTML string

// pagePolicy lets the page load nothing but itself.
const pagePolicy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"

// newPage returns what serves the page.
func newPage(program string, h *history, ready func() error) http.Handler {
	page := template.Must(template.New("page").Funcs(template.FuncMap{
		"age": age, "count": count, "percent": percent,
	}).Parse(pageHTML))
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var body bytes.Buffer
		if err := page.Execute(&body, look(program, h.gather(time.Now()), h, ready())); err != nil {
			text(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", pagePolicy)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = body.WriteTo(w) // the reader has gone: nobody to tell
	})
}

// count writes a number as people read it.
func count(n float64) string {
	switch {
	case n > 0 && n < 10 && n != math.Trunc(n):
		return fmt.Sprintf("%.1f", n)
	case n < 1000:
		return fmt.Sprintf("%.0f", n)
	}
	digits := fmt.Sprintf("%.0f", n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }
