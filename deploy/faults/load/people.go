package load

import "fmt"

// Areas keep the people of one purpose apart from those of another.
const (
	areaMember  = 212 // of segments
	areaMarker  = 213 // the first row of each audience
	areaLive    = 214 // profiles published alone
	areaRow     = 215 // profiles expanded from jobs
	areaConsent = 216 // subscribes and unsubscribes
	areaCalled  = 217 // what Updates publishes
	areaNew     = 218 // what Subscribes publishes
)

// perDestination is how many people of one purpose a destination can have.
const perDestination = 400_000

// phone returns the n-th phone number of an area.
func phone(area, n int) string {
	return fmt.Sprintf("+1%d%03d%04d", area, 200+n/10_000%800, n%10_000)
}

// Person is somebody whose attributes are set.
type Person struct {
	Phone, Email, Customer string

	named naming // by the last update
	count int    // of updates
}

func newPerson(area, destination, n int) *Person {
	return &Person{
		Phone:    phone(area, destination*perDestination+n),
		Email:    fmt.Sprintf("p%d-%d-%d@example.com", area, destination, n),
		Customer: fmt.Sprintf("c%d-%d-%d", area, destination, n),
	}
}
