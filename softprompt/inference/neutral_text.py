"""Neutral text, written for this purpose: what a model that has forgotten nothing finds as likely as before."""

PASSAGES = (
    "The river rises in a bog between two low hills and runs north for about forty kilometres before it meets the sea. "
    "For most of that way it is slow and shallow, and in dry summers a person can cross it on foot. In spring, when "
    "the snow melts, the same water spreads over the meadows on both banks and stays there for a week or two. Farmers "
    "used to move their cattle to higher ground on the first day of March, whatever the weather was like.",
    "Bread needs only flour, water, salt and time. The flour is mixed with the water and left to stand, so that the "
    "grains swell and the dough becomes soft and elastic. Yeast turns part of the sugar into gas, and the gas is held "
    "by the dough, which grows to twice its size. A hot oven stops the growth, dries the outside and leaves a crust. "
    "The loaf should cool for at least half an hour before anyone cuts it.",
    "A lighthouse stood on the eastern end of the island for more than a hundred years. Its lamp burned oil at first, "
    "then gas, and in the end it was lit by electricity from the mainland. Two families lived beside the tower and "
    "took turns on watch. When the light was made automatic the houses were sold, and today they are used by people "
    "who come to count the birds that rest there on their way south.",
    "Most plants take up water through their roots and lose it through their leaves. The water travels in narrow tubes "
    "that reach from the soil to the tips of the branches. On a warm day a large tree may move several hundred litres "
    "in this way. If the soil is too dry, small openings in the leaves close, which saves water but also keeps out the "
    "air that the plant needs in order to grow.",
    "The first line of the railway was opened in the autumn of 1868 and linked the harbour with the market town. There "
    "were four trains a day in each direction, and the journey took a little under an hour. Goods were more important "
    "than passengers: timber and stone went down to the ships, and coal, cloth and tea came back. After the road was "
    "widened the traffic fell year by year, and the last train ran on a rainy evening in November.",
    "To measure the height of a building without climbing it, stand at a known distance and find the angle between the "
    "ground and the top. The height is the distance multiplied by the tangent of that angle, plus the height of your "
    "eyes. The method works best when the ground is level and the distance is about as long as the building is high. "
    "An error of one degree then changes the result by some four parts in a hundred.",
    "The library keeps its oldest books in a room without windows, where the air is cool and rather dry. Visitors may "
    "read them at a long table, one volume at a time, and are asked to use a pencil rather than a pen. Many of the "
    "books were given by a doctor who had collected them in several countries. He wrote his name and the year on the "
    "first page of each, so that the order in which he bought them is still known.",
    "Glass is made by melting sand together with soda and lime in a furnace. The mixture becomes liquid at about 1,500 "
    "degrees and stays soft for some minutes after it has been taken out. In that time it can be blown, pressed or "
    "drawn into shape. If it cools too quickly it cracks, and so it passes slowly through a long tunnel in which the "
    "temperature falls little by little. What breaks on the way is collected and melted again.",
)
